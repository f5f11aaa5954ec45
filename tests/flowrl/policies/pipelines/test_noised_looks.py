"""Looks at finished samples that are noised again: what is asked about, what is answered, and who is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import families
from flowrl.contracts import Field, Prompt, Rollout, View
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.looks import levels as level_looks
from policies_support import PROMPTS, SEED, STEPS, FamilyPolicy, gap
from samplers.levels import highest
from samplers.plan import Plan
from samplers.tables import At
from samplers.visits import Visited

PLAN = Plan(STEPS, (), (), levels=(0.7, 1))
NOISED = View("noised")
UNEQUAL = [PROMPTS[0], Prompt("long", "a much longer text about three dogs beside a red cat")]


@pytest.fixture(scope="module")
def flux() -> FamilyPolicy:
    return FamilyPolicy("flux")


def fields(policy: FamilyPolicy, rollout: Rollout, rows: list[int] | None = None, view: View = NOISED) -> list[Field]:
    found: list[Field] = []
    with torch.no_grad():
        policy.look(
            rollout, torch.arange(len(rollout.mask)) if rows is None else torch.tensor(rows), view, found.append
        )
    return found


@pytest.mark.parametrize("name", ["sd15", "cosmos2", "ltx2", "cogview4"])
def test_a_look_is_the_velocity_of_the_walk(name: str) -> None:
    policy = FamilyPolicy(name)
    prompts = UNEQUAL[: policy.family.max_rows or 2]
    rollout = policy.rollout(prompts, group_size=2, plan=PLAN, seed=SEED)
    assert rollout.mask.shape == (2 * len(prompts), 2) and rollout.mask.all()
    at_step = [f for f in fields(policy, rollout) if f.columns.item() == 1]  # of the walk's own step 1
    streams = sorted(rollout.replay.clean)
    for found in at_step:
        who = [prompts[row // 2] for row in found.rows.tolist()]
        x = dict.fromkeys(streams, found.x)
        if len(streams) > 1:
            sizes = [rollout.replay.clean[s][0].numel() for s in streams]
            parts = zip(streams, found.x.split(sizes, 1), strict=True)
            x = {s: part.unflatten(1, rollout.replay.clean[s].shape[1:]) for s, part in parts}
        with torch.no_grad():
            v = policy.velocity(who, x, 1, plan=PLAN, seed=SEED)
        theirs = found.v if len(streams) == 1 else found.v[:, : v[0].numel()].unflatten(1, v.shape[1:])
        assert gap(theirs, v) <= 2e-4 * float(v.abs().max())


def test_a_row_alone_is_that_row(flux: FamilyPolicy) -> None:
    policy = flux
    rollout = policy.rollout(UNEQUAL, group_size=2, plan=PLAN, seed=SEED)
    together, alone = fields(policy, rollout), fields(policy, rollout, [2])
    assert [f.columns.tolist() for f in alone] == [[0], [1]]
    for whole, part in zip(together, alone, strict=True):
        assert part.rows.tolist() == [2] and torch.equal(whole.x[2:3], part.x)
        assert gap(whole.v[2:3], part.v) <= 1e-5


@pytest.mark.parametrize("name", ["flux", "sd15"])
def test_samples_are_noised_along_the_path(name: str, flux: FamilyPolicy) -> None:
    policy = flux if name == "flux" else FamilyPolicy(name)
    rollout = policy.rollout(PROMPTS, group_size=2, plan=PLAN, seed=SEED)

    def noise(f: Field) -> Tensor:
        a = 1 - f.level if name == "flux" else (1 - f.level**2) ** 0.5
        return (f.x - a * f.x0) / f.level

    own, shared = fields(policy, rollout), fields(policy, rollout, view=replace(NOISED, share_noise=True))
    for f in (*own, *shared):
        assert torch.equal(f.x0, rollout.replay.clean[0])
        assert gap(f.target, noise(f) - f.x0) <= 1e-5
        assert gap(f.clean(f.target), f.x0) <= 1e-5
    noises = [noise(f) for f in own]
    pairs = [(noises[0][0], noises[0][1]), (noises[0][0], noises[0][2]), (noises[0][0], noises[1][0])]
    assert all(gap(a, b) > 0.5 for a, b in pairs)
    same = noise(shared[0])
    assert gap(same[0], same[1]) <= 1e-5 < 0.5 < gap(same[1], same[2])


def test_the_gradient_reaches_the_weights(flux: FamilyPolicy) -> None:
    policy = flux
    rollout = policy.rollout(PROMPTS, group_size=1, plan=PLAN, seed=SEED)
    norms: list[float] = []

    def visit(f: Field) -> None:
        f.v[1].square().sum().backward()
        norms.append(sum(float(p.grad.abs().sum()) for p in policy.trainable() if p.grad is not None))

    policy.look(rollout, torch.arange(2), NOISED, visit)
    assert norms[0] > 0 and norms[1] > norms[0]


def test_a_look_without_guidance_is_the_bare_conditional_velocity() -> None:
    """Of guided rollouts: the third row alone and beside another, with prompts of unequal length and own scales."""
    policy, rows = FamilyPolicy("sd3", look_call={"guidance_scale": 1.0}), []
    own = replace(UNEQUAL[0], call={"guidance_scale": 2.0})
    rollout = policy.rollout([replace(UNEQUAL[1], id="same", call=own.call), own], group_size=2, plan=PLAN, seed=SEED)
    transformer, pipe = policy.modules["transformer"], policy.source
    hook = transformer.register_forward_hook(lambda *call: rows.append(len(call[-1][0])))
    alone = fields(policy, rollout, [2])[0]
    before = len(rows)
    beside = fields(policy, rollout, [1, 2])
    assert rows[before:] == [2, 2]  # a row for each sample and level, where guidance takes two
    hook.remove()
    told = {"prompt": own.text, "prompt_2": None, "prompt_3": None, "max_sequence_length": 48}
    with torch.no_grad():
        text, _, pooled, _ = pipe.encode_prompt(**told, do_classifier_free_guidance=False)
        bare = transformer(alone.x, text, pooled, torch.tensor([1000 * alone.level]), return_dict=False)[0]
    assert gap(alone.v, bare) <= 1e-5 * float(bare.abs().max())
    assert gap(beside[0].v[1:], bare) <= 1e-5 * float(bare.abs().max())
    policy.looks = policy
    assert gap(fields(policy, rollout, [2])[0].v, bare) > 0.01 * float(bare.abs().max())


def test_a_look_without_guidance_asks_another_denoiser_as_often() -> None:
    """Wan calls its denoiser twice a step under guidance: what a look skips is counted in its own calls."""
    policy, called = FamilyPolicy("wan", look_call={"guidance_scale": 1.0}), []
    rollout = policy.rollout(PROMPTS, group_size=1, plan=PLAN, seed=SEED)
    fields(policy, rollout)
    policy.modules["transformer"].register_forward_hook(lambda *call: called.append(len(call[-1][0])))
    fields(policy, rollout)
    assert called == [2, 2]


def test_a_look_that_is_not_the_walk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(level_looks, "At", lambda level, begins=None: At(0.8 * level, begins))
    policy = FamilyPolicy("flux")
    rollout = policy.rollout(PROMPTS, group_size=1, plan=PLAN, seed=SEED)
    with pytest.raises(PolicyError, match="by itself it gives another velocity than in its walk"):
        fields(policy, rollout)


def test_guidance_that_remembers_is_refused() -> None:
    policy = FamilyPolicy("hunyuan_image")
    rollout = policy.rollout(PROMPTS[:1], group_size=1, plan=PLAN, seed=SEED)
    with pytest.raises(PolicyError, match="another velocity than in its walk.*remembers earlier steps"):
        fields(policy, rollout)


# what no walk of another number of steps has in common with the one looked at: skipped layers by step
COUNTED = {"sd3_slg"}


def worst_of_all_levels(name: str) -> float:
    """The largest distance of looks from the velocities of two walks, of which one has levels between the other's."""
    policy = FamilyPolicy(name)
    if name == "ltx_condition":  # noised conditions are other ones in another walk
        policy.call = lambda prompts: policy._of_rows(prompts) | {"image_cond_noise_scale": 0.0}
    prompt, start = PROMPTS[1], [Key(0, PROMPTS[1].id, 0)]
    policy.prepare(prompt, PLAN)
    asking, worst, compared = level_looks.prove_look(policy, prompt, STEPS), 0.0, 0
    with torch.no_grad():
        for steps in (STEPS,) if name in COUNTED else (STEPS, 2 * STEPS):
            walk = level_looks._Watching()
            policy.run(walk, [prompt], start, steps=steps)
            for at in list(walk.steps)[1:]:
                level = highest(walk.steps[at][0].s)
                if level > asking.below:
                    continue
                answer = level_looks.look_at(policy, asking, walk.states[at], [prompt], start, level)
                compared += 1
                for stream, step in walk.steps[at].items():
                    kept = answer.kept[stream]
                    apart = (answer.velocity[stream] - step.v).abs()
                    apart = apart if kept is None else apart[kept]
                    assert apart.numel() and gap(answer.x[stream], walk.states[at][stream]) <= 1e-4
                    worst = max(worst, float(apart.max() / step.v.abs().max()))
    assert compared >= 2
    return worst


@pytest.mark.parametrize("name", ["sdxl_inpaint", "sdxl_img2img", "flux2_klein_kv", "ltx_condition", "lumina2"])
def test_levels_between_those_of_the_walk_have_its_velocities(name: str) -> None:
    assert worst_of_all_levels(name) <= 1e-3


@pytest.mark.slow
def test_all_families_but_one_can_be_looked_at() -> None:
    assert [name for name in families.NAMES if name != "hunyuan_image" and worst_of_all_levels(name) > 1e-3] == []


def test_levels_of_a_step_that_is_guided_otherwise_are_refused() -> None:
    policy = FamilyPolicy("sd3_slg")
    rollout = policy.rollout(PROMPTS, group_size=1, plan=PLAN, seed=SEED)
    assert len(fields(policy, rollout, [0, 1], NOISED)) == 2
    first = policy.rollout(PROMPTS, group_size=1, plan=replace(PLAN, levels=(0,)), seed=SEED)
    with pytest.raises(PolicyError, match="belongs to the first step of its walk"):
        fields(policy, first)


@pytest.mark.parametrize("name", ["flux_inpaint", "ltx_condition"])
def test_what_a_pipeline_overwrites_is_no_part_of_a_look(name: str) -> None:
    """Of prompts with pictures of their own: the third row alone is that row, and no element of the rest counts."""
    policy = FamilyPolicy(name)
    rollout = policy.rollout(PROMPTS, group_size=2, plan=PLAN, seed=SEED)
    together, alone = fields(policy, rollout), fields(policy, rollout, [2])
    for seen in alone:
        whole = next(f for f in together if f.columns.item() == seen.columns.item() and 2 in f.rows.tolist())
        at = whole.rows.tolist().index(2)
        assert seen.share is not None and whole.share is not None and 0.2 < float(seen.share) < 0.9
        assert gap(whole.v[at : at + 1], seen.v) <= 1e-5 and torch.equal(whole.x[at], seen.x[0])
        given = seen.v == 0
        assert abs(1 - float(given.float().mean()) - float(seen.share)) <= 1e-6
        assert not seen.target[given].any() and not seen.x[given].any() and (seen.target[~given] != 0).all()
        noise = (seen.x - (1 - seen.level) * seen.x0) / seen.level
        assert gap((noise - seen.x0)[~given], seen.target[~given]) <= 1e-5


@pytest.mark.parametrize("name", ["flux_inpaint", "ltx_condition"])
def test_no_gradient_of_a_reward_goes_through_a_state_that_is_overwritten(name: str) -> None:
    with pytest.raises(PolicyError, match="which no gradient of a reward goes through"):
        FamilyPolicy(name).rollout(PROMPTS[:1], group_size=1, plan=Plan(STEPS, (), (), levels=(Visited(2),)), seed=SEED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (1.2,)}, "level 1.2"),
        ({"levels": (STEPS,)}, f"from 0 to {STEPS - 1}"),
        ({"levels": (0.5,), "share_noise": True}, "draws no noise and shares none"),
    ],
)
def test_a_plan_refuses_levels_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(STEPS, (), (), **options)
