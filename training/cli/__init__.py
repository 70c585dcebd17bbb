"""Options of the commands, and the command that repeats a training."""
