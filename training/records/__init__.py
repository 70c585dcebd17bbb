"""What stands beside a checkpoint's weights: how and on which images it was trained, what was measured of it."""
