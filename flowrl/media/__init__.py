"""Pictures, videos and sounds: which tensors are valid ones, and how they are written to files."""
