"""Runs on the second device what tests ask for, in a process of its own, since the device stays known to torch.

    python tests/on_second_device.py run tiny_lm_grpo device=npu ... + check tiny_lm_grpo device=npu ...
    python tests/on_second_device.py families apart|together NAME ...
    python tests/on_second_device.py seeing NAME ...

The first form is commands of flowrl. The others draw and replay with tiny pipelines, or models that see or hear, on
the CPU and on the device, and print a line of JSON each: the largest differences of pictures, of log-probs, and between
draw and replay. apart: with frozen weights in host memory (`offload`).
"""

import itertools
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

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


def compare_seeing(names: list[str]) -> None:
    """A line of JSON for each."""
    import seeing_survey as survey
    from language_support import replayed

    with TemporaryDirectory() as folder:
        files = survey.written(Path(folder))
        for name in names:
            prompts = survey.prompts(name, files)
            here, there = (survey.policy_of(name, device=device) for device in ("cpu", second_device.NAME))
            a, b = (policy.rollout(prompts, plan=survey.PLAN, seed=0) for policy in (here, there))
            again = replayed(there, b, [[0, 1, 2]]).logp
            gaps = {
                "log-probs": float((a.rollout_logp - b.rollout_logp.cpu()).abs()[a.mask].max()),
                "replay": float((again.cpu() - b.rollout_logp.cpu()).abs()[b.mask.cpu()].max()),
            }
            print(json.dumps({"name": name, **gaps}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    second_device.register()
    if sys.argv[1] == "families":
        compare_families(sys.argv[3:], apart=sys.argv[2] == "apart")
    elif sys.argv[1] == "seeing":
        compare_seeing(sys.argv[2:])
    else:
        commands(sys.argv[1:])
