"""The policy and what is computed with it: log-probs, adapters, values, shards."""
