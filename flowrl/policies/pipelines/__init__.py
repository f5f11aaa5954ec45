"""Any diffusers pipeline as a policy: its scheduler's `step` is intercepted, all else is its own.

policy.py            the policy; probe.py: what it learns of a pipeline, and proves, before it trusts it
passes.py            one call of the pipeline on behalf of a walk, which policy and probe are made of
intercepted_step.py  the one call that is intercepted: `scheduler.step`
ddim_step.py         the same of pipelines that predict noise, v or the image: they are walked by DDIM
gates.py             stand-ins for the pipeline's modules, which skip denoiser calls when a walk is fast-forwarded
shortcuts.py         what diffusers asks of all modules within them in each call, found in one pass
trajectory.py        what a rollout stores for its replay
rollout_walk.py      the walk of a rollout through a tree of segments; trajectory_writer.py: what it keeps
replay_walk.py       the walks over what was recorded: replay, look
dynamics.py          how a step becomes a distribution
sigma_table.py       a scheduler's sigma table, and another one in its place
first_order.py       which scheduler is walked in the place of a pipeline's own
sharing.py           which rows share a call; neighbours.py: how the probe finds that out
guidance.py          which rows of a call are unconditional; branches.py: they alone without gradient
working_copy.py      the working copy of a pipeline that all of these sit on
arguments.py         what the pipeline is called with
prompt_cache.py      text encoding, once per distinct prompt
teacher.py           references that are pipelines of their own; substeps.py: several of their steps to one
failing.py           what a pipeline raises while it is tried out, as one line
writing.py           texts that a pipeline has a language model write, once a sample
layouts.py           what a pipeline returned, turned into pictures and sound; outputs.py: as samples
"""
