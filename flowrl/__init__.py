"""flowrl: reinforcement learning for image and video generators and for language models."""

__version__ = "0.1.0"
