"""What a run reads before it loads weights: prompts, their columns, and whether they fit the model."""
