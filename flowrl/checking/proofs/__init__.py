"""What `flowrl check` proves about a recipe on the machine that will run it: small functions, one fact each.

bench.py holds the evidence that proofs share (the policy, a small rollout, its replay), made once and on demand. A
proof is a function of the bench that returns what it measured, in words, or raises `ProofError`.
"""
