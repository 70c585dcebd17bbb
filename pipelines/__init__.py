"""What is shipped to the Hub with every checkpoint: the pipelines and what they are made of."""
