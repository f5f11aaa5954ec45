"""What a recipe will do and what it costs, computed without weights: walks, costs, memory, time."""
