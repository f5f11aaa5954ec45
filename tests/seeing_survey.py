"""What each type of model that sees or hears gives as a policy, tiny and random; as a script it writes a page.

`PYTHONPATH=tests python -m seeing_survey PAGE` takes minutes. test_seeing_families.py holds what it found.
"""

import argparse
import datetime
import warnings
import wave
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import transformers

import seeing_families as families
import vision_support as vision
from flowrl.contracts import Prompt
from flowrl.policies.errors import PolicyError
from flowrl.policies.language import proving
from flowrl.policies.language.policy import LanguagePolicy
from language_support import replayed
from samplers.tokens import Generation
from seeing_tables import ALONE, DOUBLE, MISSING, TORCHAUDIO, VIDEOS, WHOLE

PLAN = Generation(5)
LIMIT = 1e-5  # of a log-prob, between decoding together and each replay
SEEN = 1e-4  # that other media change the first log-prob of a row by, at least
Files = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Found:
    """The largest gap of a log-prob, and the least change by other media."""

    gap: float
    change: float

    @property
    def exact(self) -> bool:
        """Whether it may be called exact."""
        return self.gap <= LIMIT and self.change > SEEN


def written(folder: Path) -> Files:
    """Two pictures, two sounds and two videos of different sizes."""
    for name, seconds, hertz in (("a", 1.0, 440), ("b", 1.6, 700)):
        time = np.arange(int(16000 * seconds)) / 16000
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((2**14 * np.sin(2 * np.pi * hertz * time)).astype("<i2").tobytes())
    pictures = (
        vision.picture(folder / "a.png", size=(224, 168)),
        vision.picture(folder / "b.png", size=(112, 196), seed=1),
    )
    for name, size in (("a", (56, 42)), ("b", (42, 56))):
        (folder / f"{name}.frames").mkdir()
        for i in range(4):
            vision.picture(folder / f"{name}.frames" / f"{i}.png", size=size, seed=i + len(name) * size[0])
    clips = str(folder / "a.frames"), str(folder / "b.frames")
    return {"video": clips, "image": pictures, "audio": (str(folder / "a.wav"), str(folder / "b.wav"))}


def prompts(name: str, files: Files) -> list[Prompt]:
    """Three of different lengths, the first and third with the same picture or sound."""
    first, second = files["audio" if name in families.HEARING else "video" if name in VIDEOS else "image"]
    return [
        Prompt("one", "What is this?", (first,)),
        Prompt("two", "And which is larger or so?", (second,)),
        Prompt("three", "Why", (first,)),
    ]


def policy_of(name: str, device: str = "cpu") -> LanguagePolicy:
    """A type as it is measured."""
    how = {"batch_invariant": name in ALONE, "whole": name in WHOLE, "double": name in DOUBLE}
    made: LanguagePolicy = families.policy(name, device=device, **how)
    made._proven = {True, False}  # the proof's limit is wider than what is shown here
    return made


def measured(name: str, files: Files) -> Found:
    """Rows decoded together against replays together and of each row alone, and with other media."""
    subject = policy_of(name)
    rollout = subject.rollout(prompts(name, files), plan=PLAN, seed=0)
    gap = 0.0
    for parts in ([[0, 1, 2]], [[2], [0], [1]]):
        apart = (replayed(subject, rollout, parts).logp - rollout.rollout_logp).abs()[rollout.mask].max()
        gap = max(gap, float(apart)) if apart == apart else float("inf")
    changed = (proving.with_other_media(subject, rollout) - rollout.rollout_logp).abs()[:, 0]
    return Found(gap, float(changed.min()))


def refused(name: str, files: Files) -> str | None:
    """Why flowrl does not train a type, in its own words; None where it does."""
    try:
        subject: LanguagePolicy = families.policy(name, batch_invariant=name in ALONE, whole=name in WHOLE)
        subject.prepare(prompts(name, files)[0], PLAN)
    except PolicyError as error:
        return str(error)
    return None


def line(name: str, files: Files) -> tuple[str, str]:
    """(exact or refused or not shown, what was found) of a type."""
    if name in MISSING:
        return "not shown", MISSING[name]
    try:
        found = measured(name, files)
        if found.exact:
            how = {
                ", of videos": VIDEOS,
                ", with torchaudio": TORCHAUDIO,
                ", in float64": DOUBLE,
                ", each row by itself": ALONE,
                ", without its cache": WHOLE,
            }
            return "exact", "".join([f"{found.gap:.0e}", *(words for words, names in how.items() if name in names)])
        said = f"differs by {found.gap:.1e}, other media change it by {found.change:.1e}"
    except PolicyError as error:
        return "refused", str(error)
    except Exception as error:  # noqa: BLE001  # of a model's own code
        said = f"{type(error).__name__}: {error}"
    try:
        reason = refused(name, files)
    except Exception:  # noqa: BLE001
        reason = None
    return ("refused", reason) if reason else ("not shown", said)


def row(name: str, files: Files) -> str:
    """A type's line of the table."""
    what, found = line(name, files)
    short = " ".join(found.replace("|", "\\|").replace(f"{Path(files['image'][0]).parent}/", "").split())
    return f"| `{name}` | {what} | {short[:240]} |"


def table(names: dict[str, str], rows: dict[str, str]) -> list[str]:
    """The table of these types, and how many of each there are."""
    own = [rows[name] for name in names]
    kinds = [made.split(" | ")[1] for made in own]
    counts = ", ".join(f"{kinds.count(what)} {what}" for what in ("exact", "refused", "not shown"))
    return [f"{len(names)} types: {counts}.", "", "| type | | largest gap, or reason |", "|---|---|---|", *own]


INTRODUCTION = """# Models that see and hear

Every type that transformers {version} lists for pictures and text, or for more kinds of media and text, as a tiny
random configuration with its own processor (`tests/seeing_tables.py` has the sizes). *exact*: three rows of different
prompts and media, decoded together, have the log-probs of a replay together and of each row alone to 1e-5, and other
media change them. *refused*: flowrl does not train it, and says why. *not shown*: neither could be shown here, for the
reason in its line.

Written on {date} by `PYTHONPATH=tests python -m seeing_survey docs/seeing.md`;
`pytest -m slow tests/flowrl/policies/language` shows it again.
[language.md](language.md#pictures-and-sounds) tells how such a model is trained."""


def main() -> None:
    """Writes the page; with names, asks those types again and keeps the other lines."""
    parser = argparse.ArgumentParser(description="Writes what each type of model that sees or hears gives.")
    parser.add_argument("page", type=Path)
    parser.add_argument("names", nargs="*")
    place, asked = (given := parser.parse_args()).page, given.names
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rows = {}
    if asked:
        lines = [one for one in place.read_text().splitlines() if one.startswith("| `")]
        rows = {one.split("`")[1]: one for one in lines}
    with TemporaryDirectory() as folder:
        files = written(Path(folder))
        for name in asked or (*families.SEEING, *families.HEARING):
            rows[name] = row(name, files)
            print(rows[name], flush=True)
    head = INTRODUCTION.format(version=transformers.__version__, date=datetime.date.today())
    pictures, sounds = table(families.SEEING, rows), table(families.HEARING, rows)
    place.write_text("\n".join([head, "\n## Pictures and text\n", *pictures, "\n## Further media\n", *sounds]) + "\n")


if __name__ == "__main__":
    main()
