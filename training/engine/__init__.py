"""Training itself: losses, the state of a run, what it validates, how it ends."""
