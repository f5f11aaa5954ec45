"""Any causal language model of transformers as a policy: it draws tokens and scores them again.

policy.py       the policy; building.py: made as a recipe says; proving.py: the proof that its replay is its rollout
chat.py         a prompt as token ids, through the chat template
completions.py  what a rollout stores; scores.py: what a look at it finds
critic.py       a critic over tokens
drawing/        passes of the model, caches, tokens drawn one after the other, trees and search
media/          pictures, videos and sounds
talks/          rows of several turns: environments, discussions
"""
