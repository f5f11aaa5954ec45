"""What a recipe will do and what it takes, worked out without weights: walks, costs, memory, time."""
