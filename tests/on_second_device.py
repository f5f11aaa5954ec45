"""Runs on the second device what tests ask for, in a process of its own, since the device stays known to torch.

    python tests/on_second_device.py run tiny_lm_grpo device=npu ... + check tiny_lm_grpo device=npu ...
    python tests/on_second_device.py families apart|together NAME ...

The first form is commands of flowrl. The second draws and replays with tiny pipelines, on the CPU and on the device,
and prints a line of JSON each: the largest differences of pictures, of log-probs, and between draw and replay. apart:
with frozen weights in host memory (`offload`).
"""

import itertools
import json
import sys

import torch

import second_device


def commands(arguments: list[str]) -> None:
    """Commands of flowrl, divided by +."""
    from flowrl.cli import main

    for is_break, command in itertools.groupby(arguments, lambda a: a == "+"):
        if is_break:
            continue
        sys.argv = ["flowrl", *command]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
    print(json.dumps(second_device.moves))


def compare_families(names: list[str], apart: bool) -> None:
    """A line of JSON for each."""
    import families
    from policies_support import PROMPTS, SDE, SEED, FamilyPolicy, gap, pictures, scores

    for name in names:
        family = families.get(name)
        prompts = PROMPTS[: family.max_rows]
        pipe = family.build()
        here = FamilyPolicy(name, max_rows=family.max_rows)
        there = FamilyPolicy(
            name,
            pipe if apart else pipe.to(second_device.NAME),
            device=second_device.NAME,
            offload=apart,
            max_rows=family.max_rows,
        )
        found = []
        for policy in (here, there):
            policy.prepare(prompts[0], SDE)
            found.append(policy.rollout(prompts, plan=SDE, seed=SEED))
        a, b = found
        gaps = {
            "pictures": gap(pictures(a), pictures(b).cpu()),
            "log-probs": gap(a.rollout_logp, b.rollout_logp.cpu()),
            "replay": gap(scores(there, b).cpu(), b.rollout_logp.cpu()),
        }
        print(json.dumps({"name": name, **gaps}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    second_device.register()
    if sys.argv[1] == "families":
        compare_families(sys.argv[3:], apart=sys.argv[2] == "apart")
    else:
        commands(sys.argv[1:])
