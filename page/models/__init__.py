"""The models of the page: the shelf, what of it is in memory, whose turn it is to compute."""
