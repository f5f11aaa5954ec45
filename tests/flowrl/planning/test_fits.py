"""Which cards a recipe fits, which keys would make it fit, and what decoding takes, against a process of its own."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from flowrl import names
from flowrl.kinds import kind_of
from flowrl.planning.sizes import fits
from flowrl.planning.sizes.fits import CARDS, Change, fitting, peak, room
from flowrl.planning.sizes.live import peak_live
from flowrl.planning.sizes.memory import Phase, Sizes, sizes
from flowrl.planning.sizes.text import describe_sizes
from flowrl.policies.blocks import repeated_blocks
from flowrl.policies.loading import load_pipeline
from flowrl.reading.inputs import planned_prompts
from flowrl.recipe.checks.merging import merges
from flowrl.recipe.load import load

# decoding and a training forward of shapes-flux in a fresh process: bytes that it held beyond what it began with
CHILD = """
import json, re, sys, torch
import flowrl
from pathlib import Path
def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
rows = int(sys.argv[1])
torch.set_num_threads(1)
torch.backends.mkldnn.enabled = False  # whose convolutions copy what they are given into a layout of their own
pipe = flowrl.load_pipeline("shapes-flux", torch.float32)
with torch.no_grad():
    pipe.vae.decode(torch.zeros(1, 4, 8, 8), return_dict=False)
latent = torch.zeros(rows, 4, 8, 8)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
with torch.no_grad():
    pipe.vae.decode(latent, return_dict=False)
print(json.dumps({"decoding": memory("VmHWM") - before}))
"""

AGAIN = "train.gradient_checkpointing=true"


def test_decoding_takes_what_a_fresh_process_takes():
    rows = 96
    recipe = load("quickstart", [f"train.rollout_batch={rows}"])
    found = {phase.name: phase for phase in sizes(recipe, []).phases}["decoding"].activations
    freed = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")  # goes back at once
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(rows)], capture_output=True, check=True, env=os.environ | freed
    )
    assert found == pytest.approx(json.loads(child.stdout)["decoding"], rel=0.25)


def test_the_most_that_lives_at_once_is_counted():
    big, small = nn.Linear(10, 1000, device="meta"), nn.Linear(1000, 1, device="meta")
    x = torch.empty(5, 10, device="meta")
    assert peak_live(lambda: small(big(x).relu_())) == 5 * 1000 * 4 + 5 * 4
    assert peak_live(lambda: small(big(x).relu())) == 2 * 5 * 1000 * 4  # before the first is let go
    assert peak_live(lambda: [small(big(x).relu_()) for _ in range(3)][-1]) == 5 * 1000 * 4 + 3 * 5 * 4


def test_decoding_in_parts_takes_less():
    def decoding(*more: str) -> int:
        found = sizes(load("quickstart", ["train.rollout_batch=96", *more]), [])
        return next(phase.activations for phase in found.phases if phase.name == "decoding")

    whole = decoding()
    assert decoding("vae.batch=24") == whole // 4 and decoding("vae.slicing=true") == whole // 96
    assert decoding("vae.dtype=bfloat16") < 0.75 * whole


class Model:
    """Sizes that answer to keys as a model's would."""

    def __init__(self, weights: int, texts: int, row: int):
        self.weights, self.texts, self.row = weights, texts, row

    def sizes(self, recipe, prompts) -> Sizes:
        held = self.weights + (0 if recipe.offload else self.texts)
        each = self.row // 4 if recipe.train.gradient_checkpointing else self.row
        phases = [Phase("rollout", held, 0, 0, 10), Phase("training", held, 0, 0, each * recipe.train.micro_batch)]
        return Sizes({}, 0, 0, phases, (1,), "P")


@pytest.mark.parametrize(
    ("weights", "texts", "row", "told"),
    [
        (10, 5, 0.1, ["", "", "", "", ""]),
        (20, 10, 0.01, ["offload=true", "offload=true", "", "", ""]),
        (20, 1, 1, [f"offload=true {AGAIN} train.micro_batch=8", AGAIN, "", "", ""]),
        (40, 0, 1, [None, None, f"{AGAIN} train.micro_batch=8", "", ""]),
    ],
)
def test_the_gentlest_keys_that_suffice_are_told(
    weights: float, texts: float, row: float, told: list[str | None], monkeypatch: pytest.MonkeyPatch
):
    """Of invented sizes in GiB, 16 rows in a micro-batch; the cards from the smallest on."""
    gib = 2**30
    model = Model(round(weights * gib), round(texts * gib), round(row * gib))

    class Kind:
        saving, planning = ("offload",), model

    monkeypatch.setattr(fits, "kind_of", lambda recipe: Kind)
    recipe = load("tiny_flow_grpo", ["train.micro_batch=16"])
    found = fitting(recipe, [])
    assert found is not None and [card for card, _ in found] == sorted(CARDS, reverse=True)
    said = {card: None if changes is None else set(map(str, changes)) for card, changes in found}
    assert [said[card] for card in sorted(CARDS)] == [None if one is None else set(one.split()) for one in told]
    for card, changes in found:
        if changes:
            fewer = [[one for one in changes if one is not left] for left in changes]
            assert all((peak(fits._with(recipe, [], some, {})) or 0) > room(card) for some in fewer), (
                "one is not needed"
            )


def test_rewards_leave_the_device_where_that_is_what_it_takes():
    recipe = load("tiny_flow_grpo", ["rewards.big={use: hpsv3}", "rewards.clip={use: clip_score}"])
    changes = {str(one): one for one in fits._changes(recipe)}
    assert "rewards.big.offload=true" in changes and "rewards.clip.device=cpu" in changes
    assert not any("shapes" in name for name in changes)
    changed = changes["rewards.big.device=cpu"].make(recipe)
    assert changed.rewards["big"].device == "cpu" and recipe.rewards["big"].device is None
    assert isinstance(changes["offload=true"], Change) and changes["offload=true"].make(recipe).offload


def test_merged_weights_and_float32_adapters_are_given_up_where_that_makes_a_card_fit(monkeypatch):
    """Of invented sizes: merged weights stand beside others in a rollout, adapters in float32 keep more of a row."""

    class Planned:
        def sizes(self, recipe, prompts) -> Sizes:
            drawn = Phase("rollout", (40 if merges(recipe, "cpu") else 20) * 2**30, 0, 0, 0)
            kept = (12 if recipe.dtype.adapters == "model" else 50) * 2**30
            return Sizes({}, 0, 0, [drawn, Phase("training", 0, 0, 0, kept)], (1,), "P")

    class Kind:
        saving, planning = (), Planned()

    monkeypatch.setattr(fits, "kind_of", lambda recipe: Kind)
    nft = ["rollout.merge=true", "dtype.model=bfloat16", "dtype.adapters=float32", "train.gradient_checkpointing=true"]
    recipe = load("quickstart", nft)
    found = {card: None if changes is None else set(map(str, changes)) for card, changes in fitting(recipe, []) or []}
    both = {"dtype.adapters=model", "rollout.merge=false"}
    assert found == {141: set(), 80: set(), 48: {"dtype.adapters=model"}, 32: both, 24: both}
    told = {str(one) for one in fits._changes(load("quickstart", ["dtype.model=bfloat16", "dtype.adapters=model"]))}
    assert not told & both, "they are so already"
    assert not {str(one) for one in fits._changes(load("quickstart"))} & both, "nothing is rounded in float32"


def test_the_dry_run_says_which_cards():
    text = describe_sizes(load("quickstart"), [])
    assert "\nfits        24, 32, 48, 80, 141 GB  as it is" in text
    flux = describe_sizes(load("flow_grpo_flux"), [])
    assert "\nfits        80, 141 GB              as it is\n" in flux
    batch = "rewards.pick.batch=16"  # all 1152 pictures in one call hold 23 GiB
    assert f"{'':<12}48 GB                   with {batch}\n" in flux
    assert f"{'':<12}24, 32 GB               with {batch} block_offload=true\n" in flux
    assert f"{'':<12}32 GB                   or with {batch} quantize.weights=int8\n" in flux


def test_what_is_not_known_fits_nothing():
    recipe = load("ddpo_sdxl")
    found = sizes(recipe, [])
    assert found is None or found.phases[-1].activations is not None or fitting(recipe, []) is None


CARD_RECIPES = {
    name: int(name.rpartition("_")[2][:-2].rpartition("x")[2]) for name in names.recipes() if name.endswith("gb")
}


@pytest.mark.parametrize("name", sorted(CARD_RECIPES))
def test_recipes_for_cards_fit_them(name: str):
    recipe = load(name)
    needed = peak(kind_of(recipe).planning.sizes(recipe, planned_prompts(recipe)[0] or []))
    assert needed is not None and needed <= room(CARD_RECIPES[name])


def test_where_ranks_share_out_the_weights_no_key_is_told_that_is_refused():
    """Eight cards of 80 GB: a smaller one has room for a model that is gathered block by block."""
    parts = ["parallel.kind=fsdp", "parallel.ranks=8", "train.ema=0.9", "rewards={hps: {use: hpsv3}}"]
    recipe = load("tiny_flow_grpo", [*parts, "offload=false"])
    told = {str(one).partition("=")[0] for one in fits._accepted(recipe, False)}
    assert {"parallel.sampling", "train.gradient_checkpointing", "rewards.hps.offload"} <= told
    assert not told & {"offload", "block_offload", "quantize.weights", "train.ema_in_host"}
    alone = {str(one).partition("=")[0] for one in fits._accepted(load("tiny_flow_grpo"), False)}
    assert "parallel.sampling" not in alone and {"offload", "block_offload"} <= alone
    found = dict(fitting(load("wan14_8x80gb"), []) or [])
    assert found[80] == [] and list(map(str, found[48] or [])) == ["parallel.sampling=sharded"]


def test_one_block_is_counted_where_blocks_rest_in_host_memory():
    more = ["train.gradient_checkpointing=true"]
    whole, parts = (sizes(load("quickstart", [*more, f"block_offload={word}"]), []) for word in ("false", "true"))
    module = load_pipeline("shapes-flux", torch.float32).transformer
    blocks = [sum(p.numel() for p in block.parameters()) * 4 for block in repeated_blocks(module)]
    spared = {a.name: a.weights - b.weights for a, b in zip(whole.phases, parts.phases, strict=True)}
    assert len(blocks) > 2 and set(spared.values()) == {sum(blocks) - max(blocks)}
