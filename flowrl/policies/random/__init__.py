"""Models of random weights in the true sizes of published ones, made without a download."""
