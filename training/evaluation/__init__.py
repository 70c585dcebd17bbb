"""How well a checkpoint does on labelled images: metrics, examples."""
