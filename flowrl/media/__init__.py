"""Pictures, videos and sounds: what is one, and how it is written to a file."""
