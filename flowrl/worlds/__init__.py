"""Embedded worlds: tiny data sets, checkers and pretrained models that ship with the package.

A world makes the whole toolkit run, learn and be tested on a laptop without a download. Each sits in a folder of
its own; `flowrl world build NAME` makes its model from nothing but seeds.
"""
