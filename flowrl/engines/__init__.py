"""Completions over HTTP: the policy behind an endpoint, and rollouts that another server draws.

protocol.py  what a request may hold
service.py   a policy that completes prompts, one after the other, and takes other weights
app.py       its HTTP side: OpenAI's API with vLLM's token ids, and SGLang's generate
run.py       a server of its own, or one in a thread of this process
"""
