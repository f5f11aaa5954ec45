"""What scoring a recipe's samples computes and holds beside weights, of rewards whose networks are known here."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flowrl.planning.costs import arithmetic
from flowrl.planning.remembered import look_up
from flowrl.planning.sizes.rewards import on_device, weights_of
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON

if TYPE_CHECKING:
    from flowrl.planning.sizes.memory import Phase
    from flowrl.planning.sizes.reward_networks import Sample

READERS = ("vlm_judge", "hpsv3", "video_reward")  # what they compute depends on a picture's size and the prompt


@dataclass(frozen=True)
class Scoring:
    """Of an iteration: floating-point operations of scores, and of the gradients that go through rewards (`gradients`);
    bytes that the largest call holds on the run's device; unknown: the rewards of which that is not known."""

    flops: int
    gradients: int
    held: int
    unknown: tuple[str, ...]


def with_rewards(recipe: Recipe, phases: "list[Phase]", text: str) -> "list[Phase]":
    """The phases with the reward models that stay on the device, and a phase of scoring if there are any. text: the
    longest prompt."""
    stay, at_work = on_device(recipe.rewards, recipe.device)
    if not at_work:
        return phases
    rollout, training = next(p for p in phases if p.name == "rollout"), phases[-1]
    scored = replace(rollout, name="scoring", activations=scoring(recipe, text).held, rewards=at_work)
    return [*(replace(p, rewards=stay) for p in phases[:-1]), scored, replace(training, rewards=stay)]


def scoring(recipe: Recipe, text: str) -> Scoring:
    """What the recipe's rewards take: nothing for rules, and for models that a server has. text: the longest prompt.

    Every reward is taken to score every sample. A call has `batch` samples of a reward, all where it has none.
    """
    costs, flops, gradients, held, unknown = arithmetic(recipe), 0, 0, 0, list[str]()
    for name, spec in recipe.rewards.items():
        weights = weights_of(spec.use, spec.args)
        if weights is None or weights.place == "server":
            continue
        found = _found(recipe, spec, text)
        if found is None:
            unknown.append(name)
            continue
        forward, backward, one, two = found
        flops += forward * costs.samples
        if spec.weight and costs.reward_gradients:
            gradients += backward * costs.decodes
        if spec.device in (None, recipe.device) and weights.place == "device":
            own = -(-costs.samples // (recipe.parallel.ranks or 1))  # each rank scores what it drew
            held = max(held, one + (two - one) * (min(spec.batch or own, own) - 1))
    return Scoring(flops, gradients, held, tuple(unknown))


def _found(recipe: Recipe, spec: RewardSpec, text: str) -> list[int] | None:
    """Of one sample the operations of a score and of a score with its gradient, and the bytes that one and two hold."""
    given = [recipe.pipeline.get(name, least) for name, least in (("num_frames", 1), ("height", 0), ("width", 0))]
    frames, height, width = (value if isinstance(value, int) else 0 for value in given)
    shown = {"frames": frames or 1, "height": height, "width": width, "words": len(text.split())}
    if spec.use not in READERS:  # networks with a size of their own
        shown |= {"height": 0, "width": 0, "words": 0}

    def find() -> JSON:
        from flowrl.planning.sizes.reward_networks import Sample

        return measure(spec, Sample(**shown))

    return look_up("reward", [spec.use, spec.args, shown], find)


def measure(spec: RewardSpec, sample: "Sample") -> list[int] | None:
    """The same, measured on the networks without weights; None where they are not known, or need values."""
    import torch

    from flowrl.planning.sizes.counted import count_flops
    from flowrl.planning.sizes.live import peak_live
    from flowrl.planning.sizes.reward_networks import calls
    from flowrl.planning.sizes.token_passes import UNKNOWN, Shapes

    try:
        called = calls(spec.use, spec.args, sample)
        if not called:
            return None
        with Shapes(), torch.device("meta"):
            for one in called:
                one.network.requires_grad_(False)
            forward = sum(count_flops(lambda one=one: one.run(1)) for one in called)
            backward = sum(count_flops(lambda one=one: one.run(1), backward=True) for one in called)
            once = [peak_live(lambda one=one: one.run(1)) for one in called]
            twice = [peak_live(lambda one=one: one.run(one.several or 2)) for one in called]
        return [forward, backward, max(once), max(twice)]
    except UNKNOWN:
        return None


def told(found: Scoring) -> str:
    """What is not in an estimate because of them."""
    return f"rewards ({', '.join(found.unknown)})" if found.unknown else ""
