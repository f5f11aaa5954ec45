"""Makes the reward models of the shapes world from seeds and shapes-flux: `flowrl world build shapes-rewards`."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from flowrl.untyped import Network, Pipeline
from flowrl.worlds.shapes.judges import beauty, cards, clip, exam, vlm
from flowrl.worlds.shapes.judges.pool import PicturePool, training_pool

SHAPES_FLUX = Path(__file__).parents[1] / "assets" / "shapes-flux"
RENDERS, DRAWN = 12_000, 3_000
CLIP_STEPS, VLM_STEPS = 3_000, 4_000  # of shapes-clip: in each of two cycles of the learning rate
DECAY = 0.4  # share of a cycle, at its end, over which the learning rate falls
SEED = 1


@dataclass(frozen=True)
class Results:
    """What the cards quote: measured on held-out renders and on what shapes-flux draws for held-out captions."""

    clip: dict[str, float]
    aesthetic: dict[str, float]
    vlm: dict[str, float]

    def __str__(self) -> str:
        return (
            f"shapes-clip picks {self.clip['picked']:.3f}  shapes-aesthetic r {self.aesthetic['r']:.3f}  "
            f"shapes-vlm accuracy {self.vlm['accuracy']:.3f}, AUROC {self.vlm['auroc']:.3f}"
        )


def build(out: Path, *, clip_steps: int = CLIP_STEPS, vlm_steps: int = VLM_STEPS, keep: bool = False) -> Results:
    """Trains the three models, saves each to its folder in `out` with a card; returns their held-out accuracy.

    If interrupted, it resumes when called again with the same folder. `keep` leaves the checkpoints.
    """
    work = out / ".build"
    work.mkdir(parents=True, exist_ok=True)
    pipe = DiffusionPipeline.from_pretrained(SHAPES_FLUX, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pool = training_pool(pipe, work / "pool.pt", renders=RENDERS, drawn=DRAWN, seed=SEED)
    build_clip(pool, out / "shapes-clip", work, clip_steps)
    build_aesthetic(pool, clip.load(out / "shapes-clip")[0], out / "shapes-aesthetic", work)
    build_vlm(pipe, pool, clip.load(work / "eye")[0], out / "shapes-vlm", work, vlm_steps)
    results = describe(pipe, out, clip_steps=clip_steps, vlm_steps=vlm_steps)
    if not keep:
        shutil.rmtree(work)
    return results


def build_clip(pool: PicturePool, folder: Path, work: Path, steps: int) -> None:
    """Trains and saves shapes-clip, and in work/eye its state after the first cycle, from which the judge starts."""
    folder.mkdir(exist_ok=True)
    tokenizer = clip.make_tokenizer(folder)
    for place, cycles in ((work / "eye", 1), (folder, 2)):
        if not (place / clip.WEIGHTS).is_file():
            torch.manual_seed(SEED)
            model = clip.make_model()
            clip.train(model, tokenizer, pool, work / "clip.pt", cycles=[(steps, DECAY)] * cycles, seed=SEED)
            clip.save(model, place)


def build_aesthetic(pool: PicturePool, eye: Network, folder: Path, work: Path) -> None:
    """Trains and saves shapes-aesthetic."""
    torch.manual_seed(SEED)
    head = beauty.make_head()
    beauty.train(head, eye, pool, RENDERS, work / "head.pt", steps=beauty.STEPS, seed=SEED)
    beauty.save(head, folder)


def build_vlm(pipe: Pipeline, pool: PicturePool, eye: Network, folder: Path, work: Path, steps: int) -> None:
    """Trains shapes-vlm, divides its last layer by the temperature that calibrates it, and saves it."""
    torch.manual_seed(SEED)
    processor = vlm.make_processor()
    model = vlm.make_model(processor, eye.visual)
    vlm.train(model, processor, pool, work / "vlm.pt", cycles=[(steps, DECAY)], seed=SEED)
    images, captions, labels = questions(exam.renders(21, heldout=False), exam.generate_exam(pipe, 22, heldout=False))
    with torch.no_grad():
        model.lm_head.weight /= vlm.calibrate_temperature(vlm.probabilities(model, processor, images, captions), labels)
    vlm.save(model, processor, folder)


def questions(
    renders: list[exam.Question], drawn: exam.GeneratedExam | None
) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Pictures [N, 3, 32, 32], captions and labels [N] (0 or 1): each render with its caption and with one that it
    nearly shows, then each generated picture."""
    images, captions, labels = [], [], []
    for question in renders:
        for scene, label in ((question.scene, 1.0), *((w, 0.0) for w in question.wrong[:1])):
            images.append(question.image)
            captions.append(scene.caption)
            labels.append(label)
    if drawn is not None:
        images += list(drawn.images)
        captions += [s.caption for s in drawn.scenes]
        labels += drawn.strict.tolist()
    return torch.stack(images), captions, torch.tensor(labels)


def describe(pipe: Pipeline, out: Path, *, clip_steps: int, vlm_steps: int) -> Results:
    """Measures the saved models on held-out compositions and writes their cards."""
    renders, drawn = exam.renders(), exam.generate_exam(pipe)
    results = Results(
        clip=measure_clip(out / "shapes-clip", renders, drawn),
        aesthetic=measure_aesthetic(out, drawn),
        vlm=measure_vlm(out / "shapes-vlm", renders, drawn),
    )
    cards.write(out, results, renders=RENDERS, drawn=DRAWN, clip_steps=clip_steps, vlm_steps=vlm_steps)
    return results


def measure_clip(
    folder: Path, renders: list[exam.Question], drawn: exam.GeneratedExam | None = None
) -> dict[str, float]:
    """picked, also by kind: how often the right caption's cosine is above those of four lookalikes. On generated
    pictures: AUROC of the cosine for the checker's strict score, and its correlation with the graded score."""
    model, tokenizer = clip.load(folder)
    images = torch.stack([q.image for q in renders])
    right = clip.scores(model, tokenizer, images, [q.scene.caption for q in renders])
    place = [i for i, q in enumerate(renders) for _ in q.wrong]
    wrong = clip.scores(model, tokenizer, images[place], [w.caption for q in renders for w in q.wrong])
    best = exam.ranks_right_first(right, list(wrong.split([len(q.wrong) for q in renders])))
    measured = {"picked": best.mean().item()}
    for kind in ("count", "pair", "relation"):
        measured[kind] = best[[q.scene.kind == kind for q in renders]].mean().item()
    if drawn is not None:
        score = clip.scores(model, tokenizer, drawn.images, [s.caption for s in drawn.scenes])
        measured |= {"auroc": exam.auroc(score, drawn.strict), "graded": exam.correlation(score, drawn.graded)}
    return measured


def measure_aesthetic(out: Path, drawn: exam.GeneratedExam | None = None, number: int = 1000) -> dict[str, float]:
    """r and error: correlation and mean absolute error of ratings of damaged held-out renders. On generated pictures:
    their mean rating and its correlation with the checker's graded score."""
    model, _ = clip.load(out / "shapes-clip")
    head = beauty.load(out / "shapes-aesthetic")
    images, wanted = beauty.exam(number, 31)
    with torch.no_grad():
        read = beauty.rate(head, beauty.embed_pictures(model, images))
        measured = {"r": exam.correlation(read, wanted), "error": (read - wanted).abs().mean().item()}
        if drawn is not None:
            score = beauty.rate(head, beauty.embed_pictures(model, drawn.images))
            measured |= {"mean": score.mean().item(), "graded": exam.correlation(score, drawn.graded)}
    return measured


def measure_vlm(
    folder: Path, renders: list[exam.Question], drawn: exam.GeneratedExam | None = None
) -> dict[str, float]:
    """Accuracy at 0.5, AUROC and expected calibration error on held-out renders, half of them with a wrong caption; the
    same on generated pictures by the checker's strict score, as drawn_*, and the correlation with its graded score."""
    model, processor = vlm.load(folder)
    images, captions, labels = questions(renders, None)
    measured = _accuracy_measures(vlm.probabilities(model, processor, images, captions), labels)
    if drawn is not None:
        score = vlm.probabilities(model, processor, drawn.images, [s.caption for s in drawn.scenes])
        measured |= {f"drawn_{name}": value for name, value in _accuracy_measures(score, drawn.strict).items()}
        measured["graded"] = exam.correlation(score, drawn.graded)
    return measured


def _accuracy_measures(score: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    right = ((score > 0.5).float() == labels).float().mean().item()
    return {"accuracy": right, "auroc": exam.auroc(score, labels), "ece": exam.calibration_error(score, labels)}
