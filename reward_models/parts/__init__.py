"""What rewards share: their inputs, their checkpoints, their place on a device. Nothing here is a reward."""
