"""How large things are: parameters, activations, optimizer and stored trajectory, measured or worked out on meta."""
