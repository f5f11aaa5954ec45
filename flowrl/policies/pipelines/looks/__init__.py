"""Looks at single noise levels: the velocity of a state that no replay goes through.

levels.py         how a pipeline is asked about a level, and the proof that the answer is right
calls.py          looks by calls with other arguments than a rollout's
noised.py         finished samples, noised again; visited.py: states that a walk of the ODE went through
latent_reward.py  a reward on what the denoiser itself makes of noisy latents
"""
