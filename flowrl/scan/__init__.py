"""`flowrl scan`: what each value of one sampling key does to groups of samples, without any training."""
