"""Environments of other projects as those of conversations: one file each, whose package is an extra.

gymnasium.py  games of gymnasium's interface
openenv.py    servers of OpenEnv, by its client
verifiers.py  environments of verifiers, which run their own loop, as agents
"""
