"""What every command stands on: the process and its machine, several processes at once, whole files."""
