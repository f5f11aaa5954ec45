"""Other processes: ranks that train together, the policy behind an endpoint, rollouts that a server draws, and agents.

ranks.py     processes that train one model, over torch.distributed; launch.py starts them on this machine
protocol.py  what a request may hold
service.py   a policy that completes prompts, one after the other, and takes other weights
app.py       its HTTP side: OpenAI's API with vLLM's token ids, and SGLang's generate
chats.py     chats of OpenAI's form, and calls of tools; pictures.py: pictures in them
run.py       a server of its own, or one in a thread of this process
client.py    one request a completion, to vLLM or SGLang
weights.py   a policy's weights on their way to a server
remote.py    the completions of training, drawn by a server
agents.py    agents of the user's own that ask the policy; records.py: rows of what they asked
"""
