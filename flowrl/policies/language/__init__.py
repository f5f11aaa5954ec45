"""Any causal language model of transformers as a policy: it draws tokens and scores them again.

policy.py     the policy
decoding.py   forwards: token by token with a cache, and teacher-forced
chat.py       a prompt as token ids, through the chat template
"""
