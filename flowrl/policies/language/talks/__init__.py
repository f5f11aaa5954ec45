"""Rows of several turns: conversations with an environment, and discussions of several roles.

conversations.py  rows whose turns an environment answers; shown.py: what it shows, as tokens and media
state.py          conversations as they stand, and as a rollout
again.py          more is drawn once conversations were scored; trees.py: conversations that share their first turns
discussion.py     roles of one model that speak about a prompt in turn
"""
