"""Any diffusers pipeline as a policy: its scheduler's `step` is intercepted, all else is its own.

policy.py    the policy; building.py: made as a recipe says
teacher.py   references that are pipelines of their own
probing/     what a policy finds out about a pipeline, and proves, before it trusts it
calls/       one call of the pipeline on behalf of a walk
steps/       one step of its scheduler, and what takes its place
walks/       walks from noise to samples, and what is kept of them for a replay
looks/       looks at single noise levels
encoding/    what encoders make of prompts, once for each
"""
