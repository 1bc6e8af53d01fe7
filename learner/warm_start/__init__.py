"""Policies made on the spot: the tiny one, and imitation of an expert before training."""
