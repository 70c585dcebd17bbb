"""What is written for the Hub: the model card, a Space."""
