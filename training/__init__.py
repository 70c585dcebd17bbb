"""Everything that makes, measures and publishes a checkpoint."""
