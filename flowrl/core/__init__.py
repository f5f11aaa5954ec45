"""The loop that learns: rollout, scores, advantages, loss, update. It knows no model, recipe or reward by name.

iterate.py   one iteration; engine.py: drawn and scored; update.py: trained
advantages/  from rewards to advantages
objectives/  from advantages to losses; backward.py and its neighbours: how these reach the weights
learning/    from gradients to better weights
"""
