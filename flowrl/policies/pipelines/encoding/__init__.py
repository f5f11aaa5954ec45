"""What encoders make of prompts and of what comes with them: once for each, and remembered.

prompt_cache.py  text encoding, once per distinct prompt; first.py: all prompts of an iteration before it
joining.py       results of single prompts as the result of several
conditions.py    pictures, video and sound of a prompt, by content (content.py)
store.py         what is remembered, within a limit
encodings.py     samples from elsewhere in a pipeline's own layout of latents
writing.py       texts that a pipeline has a language model write, once a sample
"""
