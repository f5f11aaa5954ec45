"""Alarms about a run that goes wrong, and the rules that raise them."""
