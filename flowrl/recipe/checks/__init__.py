"""What can be told of a whole recipe before weights are loaded: whether its values fit together, and what follows."""
