"""What `flowrl check` proves of a recipe on the machine that is to run it: small functions, a fact each.

bench.py holds the evidence that several proofs look at (the policy, a small rollout, its replay), made once, on demand.
A proof is a function of the bench that returns what it measured, in words, or raises `Failed`.
"""
