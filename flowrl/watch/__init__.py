"""Alarms: what is told of a run that goes wrong, and the rules that tell it."""
