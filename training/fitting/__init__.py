"""What is fitted after training, to good images alone: references, normalisation, blend weights, ranks."""
