"""Reward models trained on preferences."""
