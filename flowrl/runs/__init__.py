"""A run from start to end: the loop around iterations, its folder, checkpoints, resume, console."""
