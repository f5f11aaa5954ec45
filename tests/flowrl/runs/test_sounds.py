"""Sound goes all the way: a recipe trains a pipeline of sound, and what it draws is kept, shown and scored."""

from __future__ import annotations

import io
import json
import math
import wave
from pathlib import Path

import pytest
import torch
from rich.console import Console as Terminal
from typer.testing import CliRunner

import families
from flowrl.cli import app
from flowrl.contracts import Prompt, Samples
from flowrl.core.refill import join_samples
from flowrl.media.sounds import HEIGHT, WIDTH, save_sound, spectrogram_pictures
from flowrl.recipe.load import load
from flowrl.runs.console import Console
from flowrl.runs.start import run
from flowrl.scoring.batches import copy_samples
from flowrl.scoring.cache import ScoreCache
from reward_models.parts.remote import wire

RATE = families.audio.RATE
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # how the autoencoder is built
RECIPE = """
model: {model}
pipeline: {{audio_duration_s: 0.05, guidance_scale: 1.0}}
full: true
prompts: {{train: {prompts}, heldout: {prompts}}}
sampler: {{step: flow_sde, noise: 0.7, steps: 4, window: {{kind: first, size: 2}}}}
rewards:
  bright: {{use: spectral_centroid, cache: true}}
  level: {{use: sound_level, weight: 0.0}}
objective: {{preset: grpo, clip: 1.0e-3}}
train: {{prompts: 2, group: 3, updates: 1, iterations: 2, lr: 1.0e-2, micro_batch: 4}}
eval: {{every: 2, prompts: 2, grid: 2, batch: 2}}
output: {output}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two iterations."""
    folder = tmp_path_factory.mktemp("sound")
    families.get("longcat_audio").build().save_pretrained(folder / "model")
    (folder / "p.txt").write_text("rain\nwind in the tall trees\n", encoding="utf-8")
    text = RECIPE.format(model=folder / "model", prompts=folder / "p.txt", output=folder / "run")
    (folder / "sound.yaml").write_text(text, encoding="utf-8")
    return Path(run(load(str(folder / "sound.yaml")), Console(Terminal(file=io.StringIO())))["folder"])


def test_a_recipe_trains_a_pipeline_of_sound(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 2 and steps[0]["ratio"] == pytest.approx(1, abs=1e-4)
    assert all(math.isfinite(line["grad_norm"]) and line["grad_norm"] > 0 for line in steps)
    assert {"samples/sound_level", "samples/sound_centroid", "samples/diversity"} <= set(steps[0])
    assert 0 < steps[0]["reward/bright/mean"] < RATE / 2000
    before, after = (json.loads((trained / f"heldout/{i:05d}.json").read_text()) for i in (0, 2))
    assert before["scores"]["bright"] != after["scores"]["bright"]


def test_its_sounds_are_kept_and_shown(trained: Path) -> None:
    kept = json.loads((trained / "heldout/00002.json").read_text())
    assert kept["sounds"] == ["heldout/00002/000.wav", "heldout/00002/001.wav"] and len(kept["pictures"]) == 2
    with wave.open(str(trained / kept["sounds"][1])) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        assert file.getnframes() == 800  # 200 latents, decoded to four each
    page = (trained / "report.html").read_text()
    assert page.count('<audio controls preload="none" src="heldout/00002/00') == 2


def test_sample_and_eval_write_sounds(trained: Path, tmp_path: Path) -> None:
    arguments = ["sample", str(trained), "rain", "--number", "2", "--output", str(tmp_path / "s.png")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.png", "s_000.wav", "s_001.wav"]
    assert (tmp_path / "s_000.wav").read_bytes() != (tmp_path / "s_001.wav").read_bytes()
    result = CliRunner().invoke(app, ["eval", str(trained), "--save", str(tmp_path / "kept")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert names == ["00000.png", "00000.wav", "00001.png", "00001.wav"]
    assert (tmp_path / "kept/00001.wav").read_bytes() == (trained / "heldout/00002/001.wav").read_bytes()


def tone(hertz: float, number: int = 4000) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(number) / RATE)


def test_a_wav_file_holds_the_sound(tmp_path: Path) -> None:
    sound = torch.stack([tone(100) * 0.5, torch.full((4000,), 1.5)])
    save_sound(sound, RATE, tmp_path / "new" / "a.wav")
    with wave.open(str(tmp_path / "new" / "a.wav")) as file:
        read = torch.frombuffer(bytearray(file.readframes(4000)), dtype=torch.int16).reshape(-1, 2).T.float() / 32767
    assert torch.allclose(read[0], sound[0], atol=1e-4) and (read[1] == 1).all()


def test_a_picture_of_sound_shows_time_and_frequency() -> None:
    half = torch.cat([tone(3000), torch.zeros(4000)])[None, None]
    found = spectrogram_pictures(half)
    assert found.shape == (1, 3, HEIGHT, WIDTH) and 0 <= found.min() and found.max() <= 1
    left, right = found[0, 0, :, : WIDTH // 2 - 8], found[0, 0, :, WIDTH // 2 + 8 :]
    assert abs(int(left.mean(1).argmax()) - HEIGHT * (1 - 3000 / (RATE / 2))) <= 2
    assert left.max() > 0.85 and right.max() < 0.1
    assert spectrogram_pictures(torch.zeros(2, 2, 3)).shape == (2, 3, HEIGHT, WIDTH)


def test_sound_is_part_of_samples_wherever_they_go() -> None:
    sound = torch.rand(2, 1, 10)
    prompts = [Prompt("a", "a"), Prompt("b", "b")]
    one = Samples(prompts, torch.arange(2), audio=sound, sample_rate=RATE)
    joined = join_samples([one, one[[1]]])
    assert torch.equal(joined.audio, torch.cat([sound, sound[1:]])) and joined.sample_rate == RATE
    assert copy_samples(one, [1], "meta").audio.shape == (1, 1, 10) and copy_samples(one, [1]).sample_rate == RATE
    cache = ScoreCache("r", {})
    others = [
        Samples(prompts, torch.arange(2), audio=sound + 1, sample_rate=RATE),
        Samples(prompts, torch.arange(2), audio=sound, sample_rate=2 * RATE),
    ]
    assert cache._key(one, 1) == cache._key(joined, 1) == cache._key(joined, 2)
    assert len({cache._key(samples, 1) for samples in (one, *others)}) == 3
    with pytest.raises(ValueError, match="sound does not travel"):
        wire.encode(one, "safetensors")
