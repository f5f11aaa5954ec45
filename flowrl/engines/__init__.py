"""Other processes: ranks that train together, the policy behind an endpoint, rollouts that another server draws.

protocol.py  what a request may hold
service.py   a policy that completes prompts, one after the other, and takes other weights
app.py       its HTTP side: OpenAI's API with vLLM's token ids, and SGLang's generate
ranks.py     processes that train one model, over torch.distributed; launch.py starts them on this machine
run.py       a server of its own, or one in a thread of this process
"""
