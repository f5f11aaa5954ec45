"""Policies: what samples and can be trained. `pipelines` makes one of any diffusers pipeline, `language` of any causal
language model of transformers.

adapters.py   LoRA and full fine-tuning
submodules.py the modules within a module, found in one pass
noise.py      randomness as a function of (seed, prompt, sample, step)
loading.py    a pipeline or a language model from a hub id, a folder or an embedded world; devices.py: where to
errors.py     what a policy refuses, in one line
"""
