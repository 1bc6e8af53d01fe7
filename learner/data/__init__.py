"""From trajectories to batches: intake, groups, samples and micro-batches."""
