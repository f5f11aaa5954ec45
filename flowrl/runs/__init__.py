"""A run from its first line to its last: the loop around iterations, its folder, checkpoints, resume, console."""
