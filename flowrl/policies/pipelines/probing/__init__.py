"""What a policy finds out about a pipeline, and proves, before it trusts it.

probe.py       the probe: noise 0, replays, other pipelines' habits
sharing.py     which rows share a call; neighbours.py: how that is found out
guidance.py    which rows of a call are unconditional; branches.py: they alone without gradient
failing.py     what a pipeline raises while it is tried out, as one line
"""
