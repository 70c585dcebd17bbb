"""The networks that a model is made of, new or pretrained."""
