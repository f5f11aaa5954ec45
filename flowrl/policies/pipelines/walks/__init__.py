"""Walks from noise to samples, and what is kept of them.

rollout.py     the walk of a rollout through a tree of segments
replay.py      the walks over what was recorded: replay, look
guided.py      a walk that a reward of noisy latents steers
trajectory.py  what a rollout stores for its replay; trajectory_writer.py, visit_writer.py: how it is written
outputs.py     the samples of a rollout; given_samples.py: samples that were not drawn
"""
