"""Ray: one stage over all shards, and the stages of a manifest in order."""
