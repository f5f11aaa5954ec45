"""Policies: what samples and can be trained. `pipeline` makes one of any diffusers pipeline, `language` of any causal
language model of transformers.

scheduler.py   the one call that is intercepted: `scheduler.step`
diffusion.py   the same of pipelines that predict noise, v or the image: they are walked by DDIM
gates.py       stand-ins for the pipeline's modules, which skip denoiser calls when a walk is fast-forwarded
tape.py        what a rollout stores for its replay
recording.py   the walk of a rollout through a tree of segments; records.py: what it keeps
walks.py       the walks over what was recorded: replay, look
dynamics.py    how a step becomes a distribution
layouts.py     what a pipeline returned, turned into pictures and sound; outputs.py: as samples
levels.py      a scheduler's sigma table, and another one in its place
first_order.py which scheduler is walked in the place of a pipeline's own
arguments.py   what the pipeline is called with
dressing.py    the working copy of a pipeline that all of these sit on
encoding.py    text encoding, once per distinct prompt
writing.py     texts that a pipeline has a language model write, once a sample
noise.py       randomness as a function of (seed, prompt, sample, step)
adapters.py    LoRA and full fine-tuning
decoding.py    a language model's forwards: token by token with a cache, and teacher-forced
chat.py        a prompt as token ids, through the chat template
probe.py       what a policy learns of a pipeline, and proves, before it trusts it
sharing.py     which rows share a call; neighbours.py: how the probe finds that out
"""
