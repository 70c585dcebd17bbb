"""Scoring beyond one call: many images in shards, drift of a batch, scoring as a graph for export."""
