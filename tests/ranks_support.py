"""Small runs over ranks: what they train, and the program that starts ranks of them.

python -m ranks_support JOBS      what each rank needs is loaded once, and the ranks of each job are forks of it

JOBS is a list as JSON of what `job` gives. The runs of a job come one after the other in one group of ranks, each in
TO / NAME; what ends one is written to TO/NAME-RANK.txt and ends its job.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from flowrl.contracts import Prompt, Samples, View
from flowrl.media.pictures import save_picture
from flowrl.recipe.load import load

ROOT = Path(__file__).resolve().parents[1]
APART = {"WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
SMALL = ("eval.grid=4", "threads=1")
TOKENS = ("train.iterations=2", "train.group=4", "generation.max_new_tokens=8", "eval.prompts=6", "eval.batch=4")
STEPS = ("train.iterations=2", "train.prompts=3", "train.group=4", "eval.prompts=6", "eval.batch=2")
STEPS += ("eval.steps=3",)
ONE = "train.updates=1"
TREE = "sampler.tree={kind: branch, splits: [0, 2], widths: [2, 2]}"
LOOKS = ("train.iterations=2", "train.prompts=3", "train.group=4", "eval.prompts=4", "eval.batch=2")
FILES = ("train.iterations=3", "train.prompts=4", "prompts.heldout=null", "prompts.train=pairs/pairs.jsonl")
FILES += ("eval.at_start=false", "eval.at_end=false", "eval.every=null", "prompts.source=null", "train.pairs=1")
WAN = ("model=./wan", "rewards.clip.args.model=clip/transformers", "rewards.pick.args.model=clip/transformers")
WAN += ("prompts={train: prompts/video_train.txt, heldout: null}", "pipeline.height=16", "pipeline.width=16")
WAN += ("pipeline.num_frames=5", "pipeline.max_sequence_length=48", "sampler.steps=5", "train.iterations=2")
WAN += (
    "train.prompts=4",
    "train.group=4",
    "train.micro_batch=4",
    "train.rollout_batch=4",
    "eval.every=null",
    "eval.at_start=false",
)
WAN += ("eval.at_end=false", "dtype.model=float32", "device=cpu", "parallel.ranks=null", "train.ema_every=1")
MIXED = "train.source={0: 1.0, 2: 0.5}"
LIMIT = "{use: ranks_support.loses, required: true, failure_limit: 0.05}"
# name -> recipe, overrides
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "noised": ("quickstart", (*STEPS, ONE, "train.keep=2")),
    "tokens": ("tiny_lm_grpo", (*TOKENS, "train.prompts=5", ONE, "train.refill=2", "train.keep=2")),
    "invariant": (  # each row by itself, so that a look is as many calls as a rank has rows
        "tiny_lm_grpo",
        (*TOKENS, "train.prompts=3", ONE, "rollout.batch_invariant=true"),
    ),
    "critic": ("tiny_lm_grpo", (*TOKENS, "train.prompts=4", "objective.preset=ppo", "advantage.scale=batch")),
    "back": (
        "tiny_lm_grpo",
        (*TOKENS, "train.prompts=4", "objective.preset=ppo", "train.ema=0.9", "train.schedule=constant", "eval.every=2")
        + ("eval.at_start=false", "watch={on_alarm: rollback, patience: 3, rules: [{kind: ranks_support.fast}]}")
        + ("train.iterations=5",),
    ),
    "alone": ("tiny_lm_grpo", (*TOKENS, "train.prompts=1", ONE, "objective.kl=0.04")),
    "steps": ("tiny_flow_grpo", (*STEPS, "train.updates=3", "train.ema=0.9", "objective.kl=0.04")),
    "tree": ("tiny_flow_grpo", (*STEPS, ONE, TREE, "sampler.window={kind: all}")),
    "pairs": ("tiny_dpo", (*STEPS, ONE, "train.pairs=2")),
    "tools": ("tiny_tools", (*LOOKS, ONE, "generation.max_new_tokens=48")),
    "uneven": (
        "tiny_lm_grpo",
        (*TOKENS, "train.prompts=4", ONE, "train.budget={kind: equal_treatment, limit: 7}", "prompts.choose=skip"),
    ),
    "store": ("tiny_lm_grpo", (*TOKENS, "train.prompts=4", ONE, "train.store={draw: 4, age: 2}", "train.iterations=3")),
    "files": ("tiny_dpo_offline", (*FILES, ONE)),
    "mixed": ("tiny_dpo_offline", (*FILES, ONE, MIXED, "train.group=4", "rewards={dark: {use: jpeg_compressibility}}")),
    "pooled": (
        "tiny_dpo_offline",
        (*FILES, ONE, "sampler.levels=null", "objective={preset: pair_grpo}", MIXED)
        + ("train.group=4", "rewards={dark: {use: jpeg_compressibility}}"),
    ),
    "copy": (
        "tiny_lm_grpo",
        (*TOKENS, "train.prompts=4", ONE, "objective.kl=0.04", "objective.kl_kind=exact")
        + ("reference={use: model, path: arithmetic-qwen2}",),
    ),
    "teacher": (
        "tiny_flow_grpo",
        (*STEPS, "train.updates=3", "objective.kl=0.04", "reference={use: model, path: shapes-flux}"),
    ),
    "agent": (
        "tiny_lm_grpo",
        (*TOKENS, "train.prompts=3", ONE, "environment={agent: ranks_support.asks, turns: 2, workers: 2}")
        + ("rewards={won: {use: outcome}}",),
    ),
    "memory": (
        "tiny_lm_grpo",
        (*TOKENS, "train.prompts=3", ONE, "objective.kl=0.04", "train.micro_batch=auto", "train.iterations=3"),
    ),
    "partial": (
        "tiny_lm_grpo",
        (*TOKENS, "train.prompts=5", ONE, "generation.partial=3", "train.iterations=4", "checkpoint.every=1"),
    ),
    "served": (  # rollout.engine says by whom
        "tiny_lm_grpo",
        (*TOKENS, "train.prompts=3", ONE, "train.refill=1", "checkpoint.every=1", "train.iterations=3"),
    ),
    "compiled": ("tiny_lm_grpo", (*TOKENS, "train.prompts=3", ONE, "compile={backend: aot_eager}")),
    "compiled_steps": ("tiny_flow_grpo", (*STEPS, ONE, "objective.kl=0.04", "compile={backend: aot_eager}")),
    "hosted": ("tiny_lm_grpo", (*TOKENS, "train.prompts=3", ONE, "train.offload_activations=true")),
    "debate": ("tiny_debate", (*TOKENS, "train.prompts=3", ONE)),
    "masked": ("tiny_papo", (*LOOKS, ONE)),
    "noisy": ("tiny_noisy", (*LOOKS, ONE, "views.noisy.draws=2")),
    "wan": ("wan14_8x80gb", WAN),  # of a pipeline ./wan, with weights of rewards in ./clip
    "quickstart": ("quickstart", ("eval.at_start=false", "eval.at_end=false", "eval.every=null")),
    "breaking": ("tiny_lm_grpo", (*TOKENS, "train.prompts=2", ONE)),
    "failing": ("tiny_lm_grpo", (*TOKENS, "train.prompts=2", ONE, "rewards.own={use: ranks_support.fails}")),
    "losing": ("tiny_lm_grpo", (*TOKENS, "train.prompts=3", ONE, f"rewards.own={LIMIT}")),
    "hanging": (
        "tiny_lm_grpo",
        (*TOKENS, "train.prompts=2", ONE, "parallel.wait=3", "rewards.own={use: ranks_support.hangs}"),
    ),
}
BESIDE = (
    "served",
    "failing",
    "losing",
    "hanging",
    "breaking",
    "quickstart",
    "wan",
    "compiled",
    "compiled_steps",
    "hosted",
)  # what is not compared
ENDING = BESIDE[:5]  # runs that do not come to their end
WITHIN = 2e-6  # of metrics that are no log-ratio: float32 sums in another order
# how far rewards may lie apart, and how many times as far as others metrics and weights
WIDER = {"pairs": (0.0, 50.0)}  # a margin is beta = 100 times a difference of errors
WIDER |= {"wan": (1e-6, 5.0)}  # CLIP reads the pictures of other batches
WIDER |= {"memory": (0.0, 3.0)}  # one process that holds two rows at once is as far from one that holds all
WIDER |= {"mixed": (1e-3, 500.0), "pooled": (1e-3, 500.0)}  # a rounding of a pixel is a byte of a JPEG file
RATIOS = ("ratio", "replay_gap", "kl", "clip")  # what is rounding while the policy still is the one that sampled
LOADED = ("diffusers.pipelines.flux", "peft", "transformers.models.llava", "transformers.models.qwen2")
LOADED += ("flowrl.engines.ranks", "flowrl.runs.start")
FOLLOWS = ("ranks/", "time_", "micro_batch")  # metrics that are not those of one process
# what the turns of a discussion share is read once on each rank, what did not fit is called again, and the mean over
# the tokens of a view weighs each rank by its prompts
FOLLOWS_OF = {"debate": ("forwards/rollout",), "memory": ("forwards/train",), "noisy": ("views/noisy/gap",)}


def recipe_of(name: str, folder: Path, *more: str):
    """The recipe of a small run, which is written to folder / name."""
    recipe, overrides = RUNS[name]
    return load(recipe, [*overrides, *SMALL, f"output={folder / name}", *more])


# ---------------------------------------------------------------------- rewards that do what they should not


def _trains(samples: Samples) -> bool:
    """Whether these are samples of training: in an evaluation each is a group."""
    return len(samples.group.unique()) < len(samples)


def _here() -> bool:
    return os.environ.get("RANK") == "1"


def fails(samples: Samples) -> torch.Tensor:
    """A reward that ends the run on rank 1."""
    if _here() and _trains(samples):
        raise SystemExit(3)
    return torch.zeros(len(samples))


def loses(samples: Samples) -> torch.Tensor:
    """A reward that cannot score any sample of training that rank 1 has: a third of three prompts."""
    if _here() and _trains(samples):
        raise ValueError("no answer from the server")
    return torch.zeros(len(samples))


def noisy(samples: Samples) -> torch.Tensor:
    """A reward that draws from the global generator of its rank."""
    return torch.rand(len(samples))


def fast(metrics: dict[str, float]) -> str | None:
    """A rule of alarms that rings until a rollback has lowered the learning rate."""
    return None if metrics["lr"] < 1.1e-3 else "as fast as at first"


def hangs(samples: Samples) -> torch.Tensor:
    """A reward that never answers on rank 1."""
    if _here() and _trains(samples):
        time.sleep(600)
    return torch.zeros(len(samples))


def slow(samples: Samples) -> torch.Tensor:
    """A reward that takes longer than torch's launcher waits for processes that it has asked to end."""
    time.sleep(33 if _trains(samples) else 0)
    return torch.zeros(len(samples))


def asks(base_url: str, prompt: Prompt) -> float:
    """An agent that asks twice, what it was told the first time within; its score is the digits that it was told."""
    import openai

    client, said = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0), ""
    for _ in range(2):
        chat = [{"role": "user", "content": f"{prompt.text}{said}"}]
        answer = client.chat.completions.create(model="policy", messages=chat, max_tokens=4)
        said += answer.choices[0].message.content
    return sum(letter.isdigit() for letter in said) / 8


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Within, a training forward of more than two rows runs out of memory on rank 1."""
    from flowrl.policies.language.policy import LanguagePolicy

    plain = LanguagePolicy.look

    def look(self: Any, rollout: Any, rows: torch.Tensor, view: View, *more: Any, **given: Any) -> None:
        learns = torch.is_grad_enabled() and view.weights == "current"
        if os.environ.get("RANK") == "1" and learns and len(rows) > 2:
            raise torch.OutOfMemoryError("tried to allocate more")
        plain(self, rollout, rows, view, *more, **given)

    LanguagePolicy.look = look
    try:
        yield
    finally:
        LanguagePolicy.look = plain


@contextlib.contextmanager
def broken_block() -> Iterator[None]:
    """Within, a forward with gradient fails on rank 1 in the middle of the model."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    plain = Qwen2MLP.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if os.environ.get("RANK") == "1" and torch.is_grad_enabled():
            raise ArithmeticError("a block is broken")
        return plain(self, x)

    Qwen2MLP.forward = forward
    try:
        yield
    finally:
        Qwen2MLP.forward = plain


@contextlib.contextmanager
def all_in_host() -> Iterator[None]:
    """Within, activations of any size rest in host memory, and no weight of a layer does.

    Raises AssertionError where one went there, or nothing did.
    """
    from flowrl.core.learning import activations

    shapes, sent = set[tuple[int, ...]](), []
    noting, least, copy = activations._noting, activations.LEAST, torch.Tensor.copy_

    def copy_(self: torch.Tensor, other: torch.Tensor, *more: Any, **given: Any) -> torch.Tensor:
        frame = sys._getframe(1)
        if frame.f_code.co_name == "pack":
            sent.append(tuple(other.shape))
        return copy(self, other, *more, **given)

    def noted(weights: set[int]) -> Any:
        note = noting(weights)

        def shape_too(layer: torch.nn.Module, given: object) -> None:
            shapes.update(tuple(p.shape) for p in layer.parameters(recurse=False) if p.dim() == 2)
            note(layer, given)

        return shape_too

    activations._noting, activations.LEAST, torch.Tensor.copy_ = noted, 0, copy_
    try:
        yield
        assert sent and not shapes & {one for s in sent if len(s) == 2 for one in (s, s[::-1])}, shapes
    finally:
        activations._noting, activations.LEAST, torch.Tensor.copy_ = noting, least, copy


PLANTED = {"memory": little_memory, "breaking": broken_block, "hosted": all_in_host}

# ---------------------------------------------------------------------- comparing


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, line by line."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The final weights of a run."""
    return load_file(next((folder / "lora").glob("*.safetensors")))


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> tuple[float, float]:
    """How far weights lie apart: relative L2, and the largest difference of an element."""
    assert one.keys() == other.keys()
    flat = [torch.cat([values[name].flatten() for name in sorted(one)]) for values in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[0].norm()), float((flat[0] - flat[1]).abs().max())


def differences(one: Path, several: Path) -> dict[str, float]:
    """The largest differences of a run over ranks from that of one process, over all lines.

    exact: of rewards and held-out scores; ratios: of log-ratios; metrics: of all others, absolute
    or a fifth of the relative one, whichever is less; l2 and weights: see `distance`. Raises AssertionError where they
    have other metrics, or a picture differs.
    """
    alone, together = lines(one), lines(several)
    assert len(alone) == len(together) > 1
    found = {"exact": 0.0, "ratios": 0.0, "metrics": 0.0}
    follows = (*FOLLOWS, *FOLLOWS_OF.get(one.name, ()))
    for before, after in zip(alone, together, strict=True):
        plain = {name for name in before if not name.startswith(follows)}
        assert plain == {name for name in after if not name.startswith(follows)}
        for name in plain:
            if not isinstance(before[name], float):
                assert before[name] == after[name], name
                continue
            gap = abs(before[name] - after[name])
            if name.startswith(("reward/", "heldout")):
                found["exact"] = max(found["exact"], gap)
            elif any(word in name for word in RATIOS):
                found["ratios"] = max(found["ratios"], gap)
            else:
                found["metrics"] = max(found["metrics"], min(gap, gap / (abs(before[name]) or 1.0) / 5))
    if (one / "heldout" / "00000.json").exists():
        first = [json.loads((folder / "heldout" / "00000.json").read_text()) for folder in (one, several)]
        assert first[0] == first[1]
    for picture in (one / "heldout" / "00000").glob("*.png"):
        assert picture.read_bytes() == (several / "heldout" / "00000" / picture.name).read_bytes()
    found["l2"], found["weights"] = distance(weights(one), weights(several))
    return found


def compare(one: Path, several: Path, within: float = WITHIN) -> None:
    """Asserts that a run over ranks is that of one process; within: of metrics that are no log-ratio."""
    found, (rewards, wider) = differences(one, several), WIDER.get(one.name, (0.0, 1.0))
    assert found["exact"] <= rewards and found["ratios"] < 1e-4, found
    assert found["metrics"] < wider * within and found["l2"] < wider * 1e-4, found


# ---------------------------------------------------------------------- starting


def environment(**more: str) -> dict[str, str]:
    """That of a process which is no rank and finds the tests."""
    own = {name: value for name, value in os.environ.items() if name not in APART}
    paths = [str(ROOT), str(ROOT / "tests")]
    return (
        own | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"} | more
    )


def started(folder: Path, jobs: list[dict[str, Any]]) -> subprocess.Popen:
    """The program of this module; what it says goes to folder/log.txt."""
    command = [sys.executable, "-m", "ranks_support", json.dumps(jobs)]
    with (folder / "log.txt").open("w") as log:
        how = {"env": environment(), "cwd": folder, "start_new_session": True}
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **how)


def end(process: subprocess.Popen) -> None:
    """Ends what `started` has started, and every rank of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def done(folder: Path, jobs: list[dict[str, Any]], within: float = 3000) -> str:
    """Does the jobs; returns the log. Asserts that they come to their end within so many seconds; ends all of them."""
    process = started(folder, jobs)
    try:
        code = process.wait(within)
        log = (folder / "log.txt").read_text()
        assert code == 0, log[-3000:]
        return log
    finally:
        end(process)


def job(
    ranks: int,
    to: Path,
    runs: list[str],
    *more: str,
    resume: bool = False,
    blow: dict[str, Any] | None = None,
    measure: bool = False,
) -> dict[str, Any]:
    """One entry of JOBS. more: KEY=VALUE of the recipe. blow: {"signal", "rank", "phase", "entry", "delay"}: a signal
    to a rank, so many seconds after it has begun a phase for the so manieth time (see `strike`). measure: whether
    each rank writes TO/measured-RANK.json (see `count_bookkeeping`)."""
    own = {"resume": resume, "blow": blow, "measure": measure}
    return {"ranks": ranks, "to": str(to), "runs": runs, "more": list(more)} | own


PHASES = {"rollout": "drawn", "update": "update", "checkpoint": "save", "evaluation": "_evaluate"}


def strike(blow: dict[str, Any], told: Path) -> None:
    """Sends this process a signal while its main thread is in a phase, which is known by the function that does it."""
    main, entries, inside = threading.main_thread().ident, 0, False
    while True:
        frame, names = sys._current_frames().get(main or 0), set()
        while frame is not None:
            names.add(frame.f_code.co_name if "flowrl" in frame.f_code.co_filename else "")
            frame = frame.f_back
        now = PHASES[blow["phase"]] in names
        entries, inside = entries + (now and not inside), now
        if entries >= blow["entry"]:
            time.sleep(blow["delay"])
            with told.open("a") as log:
                log.write(json.dumps(blow) + "\n")
            os.kill(os.getpid(), blow["signal"])
            return
        time.sleep(1e-3)


def count_bookkeeping() -> dict[str, float]:
    """From now on counts CPU seconds of this process: those of iterations, and within, those of what is done because
    there are other ranks: telling, summing, and putting a whole rollout together."""
    from flowrl.core import ranked, update
    from flowrl.engines.ranks import ProcessRanks
    from flowrl.runs.loop import Run

    spent, inside = {"iterations": 0.0, "ranks": 0.0}, [0]

    def counted(owner: Any, name: str, what: str) -> None:
        plain = getattr(owner, name)

        def call(*args: Any, **more: Any) -> Any:
            outermost = what == "iterations" or not inside[0]
            inside[0] += what == "ranks"
            start = time.process_time()
            try:
                return plain(*args, **more)
            finally:
                inside[0] -= what == "ranks"
                spent[what] += (time.process_time() - start) * outermost

        setattr(owner, name, call)

    counted(Run, "_step", "iterations")
    for owner, name in ((ProcessRanks, "gather"), (ProcessRanks, "total"), (ranked, "_whole"), (ranked, "own_rollout")):
        counted(owner, name, "ranks")
    counted(ranked._Light, "of", "ranks")
    counted(update, "whole_gradient", "ranks")
    return spent


def write_pairs(folder: Path) -> None:
    """Six pairs of a light and a dark picture, as the recipes of files read them."""
    folder.mkdir(exist_ok=True)
    generator, records = torch.Generator().manual_seed(0), []
    for i, text in enumerate(("red circle", "blue square", "green triangle", "blue circle", "red square", "circle")):
        for name, light in (("better", 0.5), ("worse", 0.0)):
            save_picture(0.5 * torch.rand(3, 32, 32, generator=generator) + light, folder / f"{name}{i}.png")
        records.append({"prompt": f"a {text}", "better": f"better{i}.png", "worse": f"worse{i}.png"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))


def forked(number: int, work: Callable[[], None]) -> list[int]:
    """The processes of so many ranks, each of which does the work and ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(number):
        if (child := os.fork()) == 0:
            code = 1
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                if number > 1:
                    given = {"RANK": str(rank), "WORLD_SIZE": str(number), "LOCAL_RANK": str(rank)}
                    os.environ.update(given | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
                work()
                code = 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return children


def do_runs(
    to: Path, names: list[str], more: list[str], resume: bool, blow: dict[str, Any] | None, measure: bool
) -> None:
    """Does the runs as one of the ranks of a job, or alone."""
    from flowrl.commands.ranks import joined
    from flowrl.runs.start import run

    to.mkdir(parents=True, exist_ok=True)
    name = ""
    spent = count_bookkeeping() if measure else {}
    if blow is not None and str(blow["rank"]) == os.environ.get("RANK", "0"):
        threading.Thread(target=strike, args=(blow, to / "blows.txt"), daemon=True).start()
    try:
        with joined(60.0) as ranks:
            for name in names:
                if hasattr(ranks, "wait"):
                    ranks.wait = recipe_of(name, to, *more).parallel.wait
                begun = resume and any((to / name / "checkpoints").glob("*"))
                with PLANTED.get(name, contextlib.nullcontext)():
                    run(recipe_of(name, to, *more), ranks=ranks, resume=to / name if begun else None)
        if measure:
            (to / f"measured-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(spent))
    except Exception as error:
        rank = os.environ.get("RANK", "0")
        (to / f"{name}-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        if name not in ENDING:
            raise


def main(jobs: list[dict[str, Any]]) -> int:
    """Does the jobs; returns how many ranks have failed."""
    for module in LOADED:
        importlib.import_module(module)
    write_pairs(Path("pairs"))
    failed = 0
    for given in jobs:
        arguments = Path(given["to"]), given["runs"], given["more"], given["resume"], given["blow"], given["measure"]
        children = forked(given["ranks"], lambda arguments=arguments: do_runs(*arguments))

        ended = [os.waitpid(child, 0)[1] for child in children]
        failed += given["blow"] is None and sum(code != 0 for code in ended)
    return failed


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
