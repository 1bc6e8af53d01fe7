"""From trajectories to batches: what arrives, is grouped, valued, and packed."""
