"""What `training/score_folder.py` is made of: where pictures come from, the parts they are scored in, the table."""
