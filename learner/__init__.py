"""Trajectories in, weights out.

It has advantages, off-policy corrections, updates, checkpoints and published weights.
"""
