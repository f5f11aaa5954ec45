"""Rewards at work: batches, threads, time limits, the cache, and what several of them come to."""
