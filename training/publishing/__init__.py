"""What `training/publish.py` sends: the model card, what was measured, what of a checkpoint goes along, a Space."""
