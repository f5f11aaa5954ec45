"""`flowrl scan`: the effect of each value of one sampling key on groups of samples, without any training."""
