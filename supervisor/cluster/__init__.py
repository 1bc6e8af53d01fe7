"""Runs on several machines: the layout, Slurm and Ray."""
