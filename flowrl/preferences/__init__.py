"""Preferences: pairs that a model draws and rewards rank, and rewards that are fitted to pairs."""
