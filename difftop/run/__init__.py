"""The two loops and what surrounds them: configuration, checkpoints, records, seeds."""
