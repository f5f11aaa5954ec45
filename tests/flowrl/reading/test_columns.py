"""Columns of a prompt file: what goes to the pipeline's call, what is refused, and what nobody reads."""

from __future__ import annotations

import copy
import io
import json
import pickle
import wave
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console as Terminal

import families
from flowrl.contracts import Prompt
from flowrl.planning.sizes.calls import argument_names
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.calls.arguments import call_arguments
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.reading.columns import unread_columns
from flowrl.reading.inputs import load_prompts
from flowrl.reading.prompt_lines import PromptError
from flowrl.reading.prompts import load
from flowrl.recipe.load import load as load_recipe
from flowrl.runs.console import Console
from flowrl.runs.start import run
from policies_support import ODE, SEED, FamilyPolicy, gap, pictures, untouched
from samplers.transitions import flow_sde


def written(folder: Path, *records: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_a_negative_prompt_of_its_own_reaches_each_row(tmp_path: Path) -> None:
    records = [{"prompt": "a red cat", "negative_prompt": "a dog"}, {"prompt": "two dogs"}]
    prompts = load(written(tmp_path, *records), arguments=["negative_prompt"])
    assert [p.call for p in prompts] == [{"negative_prompt": "a dog"}, {}]
    assert call_arguments({"negative_prompt": "blurry"}, prompts)["negative_prompt"] == ["a dog", "blurry"]
    assert call_arguments({}, prompts)["negative_prompt"] == ["a dog", ""]

    family = families.get("sd3")
    pipe = family.build()
    policy = PipelinePolicy(pipe, {"transformer": pipe.transformer}, Dynamics(flow_sde, 0.7), call=dict(family.call))
    found = pictures(policy.rollout(prompts, plan=ODE, seed=SEED))
    theirs = FamilyPolicy("sd3", pipe)
    without = untouched(theirs, prompts)
    theirs.family = replace(family, call=dict(family.call) | {"negative_prompt": ["a dog", "blurry, low quality"]})
    assert gap(found, untouched(theirs, prompts)) <= 1e-5
    assert gap(found[:1], without[:1]) > 1e-3


def test_masks_beside_the_file_and_in_its_images_folder_reach_the_call(tmp_path: Path) -> None:
    family = families.get("flux_inpaint")
    texts = ["a red cat", "two dogs"]
    (tmp_path / "images").mkdir()
    for i, text in enumerate(texts):
        families.base.image_for(text).save(tmp_path / f"in{i}.png")
        mask = Image.new("L", (16, 16))
        mask.paste(255, (0, 0, 4 + 8 * i, 16))
        mask.save(tmp_path / "images" / f"mask{i}.png")
    records = [{"prompt": t, "image": f"in{i}.png", "mask_image": f"mask{i}.png"} for i, t in enumerate(texts)]
    prompts = load(written(tmp_path, *records), arguments=["mask_image", "image"])
    assert prompts[1].call == {"mask_image": tmp_path / "images" / "mask1.png"}
    arguments = call_arguments({}, prompts)
    assert [mask.getpixel((11, 0)) for mask in arguments["mask_image"]] == [(0, 0, 0), (255, 255, 255)]

    pipe = family.build()
    policy = PipelinePolicy(pipe, {"transformer": pipe.transformer}, Dynamics(flow_sde, 0.7), call=dict(family.call))
    found = pictures(policy.rollout(prompts, plan=ODE, seed=SEED))
    wider = [replace(p, call={"mask_image": prompts[1].call["mask_image"]}) for p in prompts]
    other = pictures(policy.rollout(wider, plan=ODE, seed=SEED))
    assert gap(found[1:], other[1:]) <= 1e-5
    assert gap(found[:1], other[:1]) > 1e-2


def test_sounds_and_clips_are_opened(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(torch.tensor([[0, 16384], [-32768, 0]], dtype=torch.int16).numpy().tobytes())
    frames = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "v.gif", save_all=True, append_images=frames[1:])
    record = {"prompt": "x", "src_audio": "a.wav", "video": "v.gif", "num_frames": 9}
    (prompt,) = load(written(tmp_path, record), arguments=["src_audio", "video", "num_frames"])
    found = call_arguments({"num_frames": 5}, [prompt])
    assert found["src_audio"].tolist() == [[0.0, -1.0], [0.5, 0.0]]
    assert len(found["video"]) == 3 and found["num_frames"] == 9
    (tmp_path / "a.wav").write_bytes(b"no sound")
    with pytest.raises(PolicyError, match=r"a\.wav: cannot be opened"):
        call_arguments({}, [prompt])


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([{"mask_image": "gone.png"}], r"mask_image: .*gone.png does not exist, nor .*images.gone.png"),
        ([{"height": 16}, {"height": 32}], "height is 16 for 'a' and 32 for 'b'; accepted: one value"),
        ([{"height": 16}, {}], "'b' has no height, which 'a' has"),
        ([{"mask_image": "p.png"}, {}], "'b' has no mask_image, which 'a' has"),
    ],
)
def test_columns_that_no_call_can_take_are_refused(tmp_path: Path, records: Sequence[dict], reason: str) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "p.png")
    named = [{"prompt": text} | record for text, record in zip("ab", records, strict=False)]
    path = written(tmp_path, *named)
    with pytest.raises(PromptError, match=reason) as error:
        load(path, arguments=["mask_image", "height"])
    assert "\n" not in str(error.value)
    load(path)  # the ground truth of a reward may be anything


def test_what_a_pipeline_takes_is_known_of_local_models_alone_where_offline() -> None:
    assert {"negative_prompt", "height"} <= set(argument_names("shapes-flux", online=False))
    assert not {"generator", "latents", "prompt"} & set(argument_names("shapes-flux", online=False))
    assert argument_names("nobody/has-this-model", online=False) == []


def test_a_language_model_of_text_does_not_see_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "in.png")
    path = written(tmp_path, {"prompt": "what is this?", "image": "in.png"})
    recipe = load_recipe("tiny_lm_grpo", [f"prompts.train={path}"])
    with pytest.raises(
        PromptError, match="'what is this\\?' has pictures or sounds .* reads text alone: .* remove that column"
    ):
        load_prompts(recipe, path, "train", None)


def test_reads_are_known_and_copies_are_none(tmp_path: Path) -> None:
    records = [{"prompt": "a", "kind": 1, "negativ_prompt": "x"}, {"prompt": "b", "kind": 2, "other": [3]}]
    path = written(tmp_path, *records)
    prompts = load(path, arguments=["negative_prompt"])
    again = copy.deepcopy(prompts)
    assert again == prompts and pickle.loads(pickle.dumps(prompts[0])) == prompts[0]
    assert "columns kind, negativ_prompt (did you mean negative_prompt?), other" in str(
        unread_columns(prompts, ["negative_prompt"])
    )
    assert again[0].meta["kind"] == 1
    assert "columns negativ_prompt, other in" in str(unread_columns(prompts))
    assert dict(prompts[1].meta) == {"kind": 2, "other": [3]}
    assert "column negativ_prompt in" in str(unread_columns(prompts))
    assert unread_columns([Prompt("a", "a", meta={"x": 1})]) is None


def brightness(samples: Any, key: str = "wanted") -> torch.Tensor:
    """A reward that reads one column."""
    asked = torch.tensor([float(p.meta[key]) for p in samples.prompts])
    return samples.images.mean((1, 2, 3)).cpu() * asked


def test_a_run_tells_the_column_that_nothing_read_once(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "in.png")
    more = {"wanted": 1, "negativ_prompt": "blue", "image": "in.png"}
    records = [{"prompt": f"a red circle {i}"} | more for i in range(4)]
    settings = [f"prompts.train={written(tmp_path, *records)}", "prompts.heldout=null", "train.iterations=2"]
    settings += ["train.prompts=2", "train.group=2", "train.updates=1", "rewards={b: {use: test_columns.brightness}}"]
    terminal = Terminal(file=io.StringIO(), width=400)
    run(load_recipe("tiny_flow_grpo", [*settings, f"output={tmp_path / 'run'}"]), Console(terminal))
    told = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert told.count("nothing read the column negativ_prompt") == 1
    assert told.count("takes no image; the pictures of the prompts are there for rewards alone") == 1
    assert "wanted" not in told
