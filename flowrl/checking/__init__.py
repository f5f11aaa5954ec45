"""`flowrl check`: tests on the real model of what a run assumes."""
