"""The loop that learns: rollout, scores, advantages, loss, update. It knows no model, recipe or reward by name."""
