"""Trajectories in, weights out: advantages, off-policy corrections, updates, checkpoints, published
weights.
"""
