"""Sizes: parameters, activations, optimizer and stored trajectory, measured or computed on the meta device."""
