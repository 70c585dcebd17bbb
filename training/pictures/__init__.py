"""The pictures of good parts that a model is made of: finding, reading, holding out, rotating, planting defects."""
