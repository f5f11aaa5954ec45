"""Rewards, one file each. Imports torch and flowrl.contracts; heavy third parties inside the constructor.

A reward is a function `(samples, **args) -> float32 [B]` or a class constructed with its arguments and called with
samples. Every public one of these files can be named in a recipe (`use: shapes`) without being registered. NaN means
"could not be scored"; an error is raised, never returned as a number.
"""
