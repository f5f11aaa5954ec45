"""From rewards to advantages: of samples, of rows, of single decisions.

combined.py   baseline, scale and combination of several rewards; normalise.py: one reward; baselines.py: published ones
repeated.py   what several samples of a prompt say together
rows.py       rows that are not samples; trees.py: rows that form trees
decisions.py  single decisions; returns.py: the functions; process.py: rewards that sit at decisions
early_calls.py  how early a conversation calls a tool
"""
