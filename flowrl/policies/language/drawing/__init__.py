"""Tokens drawn and scored: forward passes, caches, rows that begin elsewhere, trees and search.

decoding.py       token by token with a cache, and teacher-forced; forwards.py, reading.py: passes of rows
prefixes.py       keys and values that rows share
static_cache.py   keys and values in buffers of fixed size; static_steps.py: the compiled step of a token
heads.py          what makes logits of the last states, a chunk at a time
low_precision.py  a copy of the model in another precision, which draws
rows.py           rows that begin elsewhere; trees.py, search.py, guided.py, values.py, partial.py: made of them
stopping.py       what ends a completion; ends.py: where in its text each token ends
"""
