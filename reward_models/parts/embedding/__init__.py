"""Towers that embed pictures and texts, and what stands on them."""
