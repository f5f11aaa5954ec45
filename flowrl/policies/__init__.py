"""Policies: what samples and can be trained. `pipeline` makes one of any diffusers pipeline, `language` of any causal
language model of transformers.

scheduler.py   the one call that is intercepted: `scheduler.step`
diffusion.py   the same of pipelines that predict noise, v or the image: they are walked by DDIM
gates.py       stand-ins for the pipeline's modules, which skip denoiser calls when a walk is fast-forwarded
tape.py        what a rollout stores for its replay
walks.py       what happens at an intercepted step: record, replay, look
dressing.py    the working copy of a pipeline that all of these sit on
encoding.py    text encoding, once per distinct prompt
noise.py       randomness as a function of (seed, prompt, sample, step)
adapters.py    LoRA and full fine-tuning
decoding.py    a language model's forwards: token by token with a cache, and teacher-forced
chat.py        a prompt as token ids, through the chat template
probe.py       what a policy learns of a pipeline, and proves, before it trusts it
"""
