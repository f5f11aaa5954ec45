"""`flowrl check`: proofs on the real model of what a run takes for granted."""
