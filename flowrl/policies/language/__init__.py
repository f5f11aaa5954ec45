"""Any causal language model of transformers as a policy: it draws tokens and scores them again.

policy.py     the policy
decoding.py   token by token with a cache, and teacher-forced, by forwards.py
heads.py      what makes logits of the last states, a chunk at a time
scores.py     what a look finds
low_precision.py   a copy in another precision, which draws
chat.py       a prompt as token ids, through the chat template
"""
