"""From gradients to better weights, and the memory that takes.

learner.py      AdamW, its rate, clipping, copies of the weights (copies.py); lr_schedules.py, optimizers.py, scaling.py
shards.py       tensors of which every rank holds a part
activations.py  what a backward pass needs, in host memory; shrinking.py: micro-batches that become smaller
"""
