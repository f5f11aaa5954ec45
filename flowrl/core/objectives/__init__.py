"""Losses of one decision each, and the weights that reduce them. Import from the file that defines a function.

A decision is a log-probability, whether it belongs to a denoising step or to a token. Shapes are [r, k]: any r rows of
the R rows of an update, k of its K decisions. Losses are never reduced here: the loop multiplies them by weights
computed once for the whole update (aggregate.py), so micro-batches and ranks cannot change the gradient.
"""
