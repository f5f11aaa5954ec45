"""Recipes: what ships is valid and round-trips; what is wrong is answered in one line that says where, what and how."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from flowrl import names
from flowrl.kinds import kinds_of_model
from flowrl.recipe.calls import check_call
from flowrl.recipe.checks.pulled import LEVELS as PULLED
from flowrl.recipe.checks.windows import WINDOW_KEYS
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.keys.credit import CREDIT_KEYS, CreditKeys
from flowrl.recipe.keys.sampling import Window
from flowrl.recipe.load import build, dump, load, with_preset
from flowrl.recipe.models import pipeline_class
from flowrl.recipe.presets import DENOISING, LANGUAGE
from flowrl.recipe.schema import Advantage, ObjectiveKeys, Recipe

BASE = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")

SHIPPED = sorted(names.recipes())


def choices(model: type, field: str) -> tuple:
    return get_args(model.model_fields[field].annotation)


def refused(*overrides: str, recipe: str = BASE) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(recipe, overrides)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(caught.value.place + ":")
    return caught.value


def test_every_yaml_file_is_a_recipe_that_ships():
    found = sorted(path.stem for path in names.RECIPES.rglob("*.yaml"))
    assert found == SHIPPED
    assert {"tiny_flow_grpo", "flow_grpo_sd3", "flow_grpo_flux", "mixgrpo_flux", "flow_grpo_wan"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_valid_and_its_dump_reads_back_equal(name, tmp_path, monkeypatch):
    recipe = load(name)
    path = tmp_path / "resolved.yaml"
    path.write_text(dump(recipe))
    monkeypatch.chdir(tmp_path)  # prompt files were found beside the recipe: their paths must not depend on the place
    assert load(str(path)) == recipe
    assert recipe.output == f"runs/{name}"
    unread = {"pipeline", "sampler", "vae"} if recipe.generation is not None else set()
    assert set(yaml.safe_load(dump(recipe))) == set(Recipe.model_fields) - unread


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_header_is_its_manual(name):
    header = names.recipes()[name].read_text().split("\n\n")[0] + names.recipes()[name].read_text().split("model:")[0]
    for word in ("Task", "Command", "Hardware", "Reference", f"flowrl run {name}"):
        assert word in header


def test_published_numbers():
    """Section 15 of the project's sampler notes, checked against the authors' configurations."""
    sd3, flux, wan, mix = (load(n) for n in ("flow_grpo_sd3", "flow_grpo_flux", "flow_grpo_wan", "mixgrpo_flux"))
    for recipe, steps, evaluation, noise, group, clip, kl, lr, rank in (
        (sd3, 10, 40, 0.7, 24, 1e-4, 0.04, 3e-4, 32),
        (flux, 6, 28, 0.9, 24, 1e-4, 0.0, 3e-4, 64),
        (wan, 20, 50, 1.0, 4, 1e-3, 0.004, 1e-4, 32),
        (mix, 25, 25, 0.7, 12, 1e-4, 0.0, 1e-5, 64),
    ):
        got = recipe.sampler.steps, recipe.eval.steps, recipe.sampler.noise, recipe.train.group, recipe.objective.clip
        assert got == (steps, evaluation, noise, group, clip)
        assert (recipe.objective.kl, recipe.train.lr) == (kl, lr)
        assert (recipe.lora.rank, recipe.lora.alpha) == (rank, 2 * rank)
    ddpo = load("ddpo_sdxl")
    assert (ddpo.sampler.step, ddpo.sampler.steps, ddpo.sampler.noise, ddpo.sampler.window.skip_last) == (
        "ddim",
        50,
        1,
        1,
    )
    assert (ddpo.pipeline["guidance_scale"], ddpo.objective.clip, ddpo.advantage.clip) == (5.0, 1e-4, 5.0)
    assert (ddpo.train.group, ddpo.train.lr, ddpo.lora.rank, ddpo.lora.alpha) == (16, 3e-4, 4, 4)
    assert mix.sampler.window.model_dump(exclude_none=True) == dict(
        kind="progressive", size=4, interval=25, stride=1, roll_back=True, high=23
    )
    assert (mix.advantage.combine, mix.advantage.unbiased, mix.advantage.eps) == ("per_reward", True, 1e-8)


def test_choices_are_those_of_the_modules_that_implement_them():
    from flowrl.core.advantages import combined as advantages
    from flowrl.core.advantages import returns
    from flowrl.core.advantages import trees as tree_credit
    from flowrl.core.objectives import aggregate, clipped, divergence

    assert choices(Advantage, "baseline") == advantages.BASELINES
    assert choices(Advantage, "scale") == advantages.SCALES
    assert choices(Advantage, "combine") == advantages.COMBINES
    assert choices(Advantage, "singleton") == advantages.SINGLETONS
    assert set(choices(ObjectiveKeys, "kl_kind")) == set(divergence.KINDS)
    assert set(choices(ObjectiveKeys, "aggregate")) == set(aggregate.MODES)
    assert choices(ObjectiveKeys, "level") == clipped.LEVELS
    assert choices(CreditKeys, "kind") == (*returns.CREDITS, *tree_credit.CREDITS) == tuple(CREDIT_KEYS)
    assert set(choices(Window, "kind")) == set(WINDOW_KEYS)


def test_advantage_keys_are_the_arguments_and_defaults_of_the_function():
    from flowrl.core.advantages.combined import advantages

    parameters = inspect.signature(advantages).parameters
    of_the_run = ("rewards", "group", "weights", "asked", "lengths", "given")
    defaults = {name: p.default for name, p in parameters.items() if name not in of_the_run}
    assert Advantage().model_dump(exclude={"credit", "early"}) == defaults


@pytest.mark.parametrize("preset", DENOISING)
def test_preset_lies_below_the_recipes_own_values(preset, tmp_path):
    without_clip = tmp_path / "plain.yaml"
    without_clip.write_text(Path(BASE).read_text().replace(", clip: 1.0e-3", ""))
    fits: list[str] = []
    if (
        DENOISING[preset]["objective"].get("loss", {}).get("kind") in PULLED
    ):  # the gradient of a reward, at one of the last ten steps of a walk
        fits = ["sampler.steps=12", "rewards.shapes.weight=0", "rewards.clip={use: clip_score}"]
        fits += ["objective.loss.target=[0.2, 0.3]"] if preset == "reda" else []
    recipe = load(str(without_clip), [f"objective.preset={preset}", *fits])
    for section, values in DENOISING[preset].items():
        own = recipe.model_dump(exclude_none=True)[section]
        if preset == "reda" and section == "objective":
            del own["loss"]["target"]  # only a recipe can know it
        assert {k: own[k] for k in values} == values
    assert build(yaml.safe_load(dump(recipe)), name="plain") == recipe
    assert 2e-6 <= recipe.objective.clip_range[0] <= recipe.objective.clip_range[1] <= 1e-3
    more = ["advantage.eps=0.5", "objective.level=seq_token", "objective.clip=3e-4"]
    if preset == "gmpo":  # the only one that takes no other level
        more[1] = "objective.level=token"
    own = load(str(without_clip), [f"objective.preset={preset}", *fits, *more])
    assert (own.advantage.eps, own.objective.level, own.objective.clip) == (0.5, more[1].partition("=")[2], 3e-4)
    assert load(str(without_clip)).objective.clip == 1e-4  # a recipe that names none has grpo's values


@pytest.mark.parametrize("preset", LANGUAGE)
def test_preset_has_values_of_its_own_for_tokens(preset):
    given = {"generation": {"max_new_tokens": 30}, "objective": {"preset": preset, "kl": 0.5}}
    merged = with_preset(given)
    objective = ObjectiveKeys(**merged["objective"])
    kind = "k1" if objective.kl_in == "reward" else "k3"
    assert (objective.kl, objective.kl_kind) == (0.5, kind) and given["objective"] == {"preset": preset, "kl": 0.5}
    assert objective.length == (30 if preset == "dr_grpo" else None)
    assert objective.clip_range[0] == {"gspo": 3e-4, "cispo": 1.0, "gmpo": 0.4}.get(preset, 0.2)
    assert Advantage(**merged["advantage"]).clip is None
    assert with_preset(given | {"objective": {"preset": preset, "clip": 0.1}})["objective"]["clip"] == 0.1


def test_the_length_of_tokens_is_their_limit_unless_it_is_given():
    tokens = {"generation": {"max_new_tokens": 30}}
    assert with_preset(tokens | {"objective": {"aggregate": "constant"}})["objective"]["length"] == 30
    assert with_preset(tokens | {"objective": {"preset": "dr_grpo", "length": 9}})["objective"]["length"] == 9
    assert "length" not in with_preset({"objective": {"preset": "dr_grpo"}})["objective"]


def test_a_preset_of_denoising_steps_is_refused_for_tokens():
    with pytest.raises(
        RecipeError, match=r"^objective.preset: got 'mixgrpo', .*accepted: .*grpo.* \(flowrl list"
    ) as error:
        with_preset({"generation": {"max_new_tokens": 3}, "objective": {"preset": "mixgrpo"}})
    assert "\n" not in str(error.value)


def test_overrides_read_numbers_as_yaml_1_2():
    recipe = load(BASE, ["train.lr=1e-4", "objective.clip=[2e-6,3E-6]", "output=1.5e", "lora.alpha=8"])
    assert recipe.train.lr == 1e-4 and recipe.objective.clip_range == (2e-6, 3e-6)
    assert recipe.output == "1.5e" and recipe.lora.alpha == 8.0


def test_null_means_never_and_takes_away_what_a_preset_has():
    recipe = load(BASE, ["eval.every=null", "checkpoint.every=null", "advantage.clip=null"])
    assert recipe.eval.every is None and recipe.checkpoint.every is None and recipe.advantage.clip is None
    assert load("tiny_lm_grpo", ["objective.preset=edge"]).generation.again is not None
    assert load("tiny_lm_grpo", ["objective.preset=edge", "generation.again=null"]).generation.again is None


def test_a_section_that_a_preset_has_can_be_taken_away():
    ppo = ["objective.preset=ppo"]
    assert load("tiny_lm_grpo", ppo).critic is not None
    made = load("tiny_lm_grpo", [*ppo, "critic=null", "advantage.credit=broadcast"])
    assert made.critic is None and build(yaml.safe_load(dump(made))).critic is None
    with pytest.raises(RecipeError, match="'gae', which reads the values of a critic, but there is none"):
        load("tiny_lm_grpo", [*ppo, "critic=null"])


def test_null_unsets_and_a_mapping_replaces():
    recipe = load(BASE, ["train.iterations=null", "sampler.window={kind: all}", "rewards.strict=null"])
    assert recipe.train.iterations == 100
    assert recipe.sampler.window == Window(kind="all")
    assert list(recipe.rewards) == ["shapes"]


def test_a_window_changes_kind_in_one_line():
    recipe = load(BASE, ["sampler.window={kind: first, size: 6}"])
    assert recipe.sampler.window.size == 6


def test_full_instead_of_lora():
    recipe = load(BASE, ["lora=null", "full=true"])
    assert recipe.full and recipe.lora is None


def test_a_prompt_file_in_the_current_directory_goes_before_one_beside_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "train.txt").write_text("one\n")
    monkeypatch.chdir(tmp_path)
    found = load("flow_grpo_sd3", ["prompts={train: prompts/train.txt, heldout: prompts/heldout.txt}"]).prompts
    assert found.train == str(tmp_path / "prompts" / "train.txt")
    assert found.heldout == str(names.RECIPES / "prompts" / "heldout.txt")


def test_a_users_own_reward_and_step_are_found_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "mine_ok.py").write_text(
        "def redness(samples, scale=1.0): ...\n"
        "class Judge:\n    def __init__(self, path): ...\n    def __call__(self, samples): ...\n"
        "def step(x, v, s, s_next, *, noise, s_cap): ...\n"
        "def quiet(x, v, s, s_next, *, noise, s_cap): ...\nquiet.stochastic = False\nNUMBER = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    load(BASE, ["rewards.shapes={use: mine_ok.redness, args: {scale: 2.0}}", "sampler.step=mine_ok:step"])
    load(BASE, ["rewards.shapes={use: 'mine_ok:Judge', args: {path: x}}"])
    assert "'scale'" in str(refused("rewards.shapes={use: mine_ok.redness, args: {scal: 2.0}}"))
    assert refused("rewards.shapes={use: 'mine_ok:Judge'}").place == "rewards.shapes.args.path"
    assert refused("sampler.step=mine_ok.quiet").place == "sampler.step"
    assert "int" in str(refused("rewards.shapes.use=mine_ok.NUMBER"))
    assert "did you mean 'redness'?" in str(refused("rewards.shapes.use=mine_ok.rednes"))


# (overrides, place, words that the one line must hold: the value, what is accepted, the remedy)
MISTAKES = [
    (["sampler.noize=1"], "sampler.noize", ["unknown key 'noize'", "share_noise", "did you mean 'noise'?"]),
    (["trian.lr=1"], "trian", ["unknown key", "did you mean 'train'?"]),
    (["lr=1e-4"], "lr", ["unknown key", "(docs/recipes.md); did you mean 'critic.lr' or 'train.lr'?"]),
    (["preset=nft"], "preset", ["unknown key", "did you mean 'objective.preset'?"]),
    (["train.lrr=1"], "train.lrr", ["more (flowrl explain train); did you mean 'lr'?"]),
    (["objective.preset=grop"], "objective.preset", ["more (flowrl list presets); did you mean 'grpo'?"]),
    (["zzz=1"], "zzz", ["unknown key", "remove zzz"]),
    (["train.itrations=null"], "train.itrations", ["unknown key", "did you mean 'iterations'?"]),
    (["rewards.shapes.wieght=null"], "rewards.shapes.wieght", ["did you mean 'weight'?"]),
    (["rewards.shapes.wieght=2"], "rewards.shapes.wieght", ["unknown key", "did you mean 'weight'?"]),
    (["model=null"], "model", ["missing", "shapes-flux", "set model="]),
    (["prompts.train=null"], "prompts.train", ["missing", "a prompt source"]),
    (["rewards={}"], "rewards", ["got {}", "change rewards"]),
    (["model=shape-flux"], "model", ["'shape-flux'", "owner/name", "did you mean 'shapes-flux'?"]),
    (["model=/nowhere/at/all"], "model", ["model_index.json", "change model"]),
    (["model=."], "model", ["without model_index.json"]),
    (["train.lr=fast"], "train.lr", ["'fast'", "a number > 0", "change train.lr"]),
    (["train.lr=0"], "train.lr", ["got 0", "a number > 0"]),
    (["train.lr=.nan"], "train.lr", ["got nan", "a number > 0"]),
    (["sampler.noise=.inf"], "sampler.noise", ["got inf", "a number >= 0"]),
    (["rewards.shapes.weight=.nan"], "rewards.shapes.weight", ["got nan", "a number"]),
    (["train.group=12.5"], "train.group", ["got 12.5", "a whole number >= 1"]),
    (["train.group=true"], "train.group", ["got True", "a whole number"]),
    (["train.lr=true"], "train.lr", ["got True", "a number > 0"]),
    (["train.group='12'"], "train.group", ["got '12'", "a whole number"]),
    (["sampler.share_noise=yes"], "sampler.share_noise", ["got 'yes'", "true or false"]),
    (["sampler.noise=-1"], "sampler.noise", ["got -1", "a number >= 0"]),
    (["sampler=3"], "sampler", ["got 3", "a mapping"]),
    (["sampler.reduce=avg"], "sampler.reduce", ["'avg'", "mean or sum"]),
    (["sampler.window.kind=radnom"], "sampler.window.kind", ["'radnom'", "did you mean 'random'?"]),
    (["sampler.window.kind=all"], "sampler.window.size", ["got 2", "reads only skip_last", "sampler.window.size=null"]),
    (["sampler.window.size=null"], "sampler.window.size", ["missing", "set sampler.window.size="]),
    (["sampler.window={kind: progressive, size: 2}"], "sampler.window.interval", ["missing", "'progressive'"]),
    (["sampler.window.size=5"], "sampler.window.size", ["got 5", "[0, 4)", "lower the size"]),
    (["sampler.window.high=9"], "sampler.window.high", ["got 9", "sampler.steps = 6"]),
    (["sampler.window.low=3"], "sampler.window.size", ["[3, 4)", "holds 1"]),
    (["sampler.steps=3"], "sampler.window.high", ["got 4", "sampler.steps = 3"]),
    (["sampler.window={kind: all}", "sampler.steps=1"], "sampler.window.skip_last", ["got 1", "raise sampler.steps"]),
    (["sampler.window={kind: first, size: 7}"], "sampler.window.size", ["got 7", "[0, 6)"]),
    (["sampler.step=ode"], "sampler.step", ["'ode'", "a stochastic step", "flow_sde"]),
    (["sampler.noise=0"], "sampler.noise", ["got 0", "a stochastic step", "above 0"]),
    (["sampler.step=ddim", "sampler.noise=1.2"], "sampler.noise", ["got 1.2", "share", "up to 1"]),
    (["sampler.step=vp_ddim"], "sampler.step", ["'vp_ddim'", "set sampler.step=ddim"]),
    (["pipeline.eta=0.5"], "pipeline.eta", ["got 0.5", "use sampler.noise"]),
    (["sampler.step=flow_sed"], "sampler.step", ["'flow_sed'", "did you mean 'flow_sde'?"]),
    (["sampler.step=no_such_module.step"], "sampler.step", ["no_such_module", "cannot be imported"]),
    (["sampler.step=math.nothing"], "sampler.step", ["'math' has no 'nothing'"]),
    (["objective.preset=grppo"], "objective.preset", ["'grppo'", "mixgrpo", "did you mean 'grpo'?"]),
    (["objective.preset=[grpo]"], "objective.preset", ["['grpo']", "the name of a preset"]),
    (["objective.clip=0"], "objective.clip", ["got 0", "(0, 1)"]),
    (["objective.clip=1.0"], "objective.clip", ["got 1.0", "[low, high]"]),
    (["objective.clip=[0.1]"], "objective.clip", ["got [0.1]", "[low, high]"]),
    (["objective.clip=[1.1,2]"], "objective.clip", ["low <= 1"]),
    (["objective.clip=x"], "objective.clip", ["'x'", "[low, high]"]),
    (["objective.dual=1"], "objective.dual", ["got 1", "a number > 1"]),
    (["objective.level=seq"], "objective.level", ["'seq'", "token, seq_mean, seq_sum or seq_token"]),
    (["objective.length=9"], "objective.length", ["got 9", "'decision_mean' does not divide by a length", "=constant"]),
    (["objective.length=0", "objective.aggregate=constant"], "objective.length", ["got 0", "a whole number >= 1"]),
    (["objective.log_ratio_limit=1e-4"], "objective.log_ratio_limit", ["got 0.0001", "above 0.001", "raise it"]),
    (["objective.kl_kind=k4"], "objective.kl_kind", ["'k4'", "exact, exact_dt, k1, k2, k3, abs, forward or jsd"]),
    (["objective.weight=nois"], "objective.weight", ["'nois'", "noise, inverse_dt, inverse_entropy, or a list"]),
    (["objective.weight=[]"], "objective.weight", ["got []", "one is above 0"]),
    (["objective.weight=[1, -1]"], "objective.weight", ["[1.0, -1.0]", "numbers >= 0"]),
    (["objective.weight=[0, 0]"], "objective.weight", ["[0.0, 0.0]", "one is above 0"]),
    (["objective.weight=[1, x]"], "objective.weight", ["'x'"]),
    (["objective.ratio=centered"], "objective.ratio", ["'centered'", "did you mean 'centred'?"]),
    (["objective.kl_mask=0"], "objective.kl_mask", ["got 0", "a number > 0 or null"]),
    (["objective.kl_mask=1e-5", "sampler.reduce=sum"], "objective.kl_mask", ["1e-05", "sampler.reduce=mean"]),
    (["objective.kl_mask=1e-5", "sampler.step=cps", "sampler.noise=0.5"], "objective.kl_mask", ["'cps'", "null"]),
    (["train.keep=1"], "train.keep", ["got 1", "an even number"]),
    (["train.keep=5"], "train.keep", ["got 5", "from 2 to 10", "train.keep=null"]),
    (["train.keep=12"], "train.keep", ["got 12", "below train.group = 12"]),
    (["generation={max_new_tokens: 8}"], "pipeline", ["language model's recipe", "remove pipeline"]),
    (["generation={max_new_tokens: 8}", "pipeline=null"], "sampler", ["language model's recipe", "remove sampler"]),
    (["model=arithmetic-qwen2"], "model", ["a language model", "add generation={max_new_tokens"]),
    (["eval.temperature=0"], "eval.temperature", ["got 0", "only a language model"]),
    (["lora=null"], "lora", ["neither", "full=true"]),
    (["full=true"], "lora", ["both", "exactly one"]),
    (["lora.rank=0"], "lora.rank", ["got 0", "a whole number from 1 to 16384"]),
    (["lora.targets=[]"], "lora.targets", ["got []", "at least one"]),
    (["lora.targets=atention"], "lora.targets", ["'atention'", "did you mean 'attention'?"]),
    (["train.group=1"], "train.group", ["got 1", "baseline group", "2 or more"]),
    (["train.refill=2", "advantage.baseline=batch"], "train.refill", ["got 2", "'batch'", "train.refill=0"]),
    (["train.skip_truncated=true"], "train.skip_truncated", ["got true", "a language model", "=false"]),
    (["train.updates=3"], "train.updates", ["got 3", "train.prompts = 16", "1, 2, 4, 8, 16"]),
    (["train.micro_batch=193"], "train.micro_batch", ["got 193", "192 rows of an update"]),
    (["train.updates=2", "train.micro_batch=97"], "train.micro_batch", ["got 97", "96 rows"]),
    (["train.rollout_batch=500"], "train.rollout_batch", ["got 500", "192 rows of an iteration"]),
    (["train.betas=[0.9,1]"], "train.betas", ["[0.9, 1.0]", "[0, 1)"]),
    (["train.betas=[0.9]"], "train.betas", ["[0.9]", "two numbers"]),
    (["train.warmup=60"], "train.warmup", ["got 60", "60 optimizer steps"]),
    (["train.ema=1"], "train.ema", ["got 1", "(0, 1)"]),
    (["train.schedule=cosin"], "train.schedule", ["'cosin'", "did you mean 'cosine'?"]),
    (["advantage.trim=0.1", "advantage.baseline=leave_one_out"], "advantage.trim", ["got 0.1", "advantage.trim=0"]),
    (["advantage.baseline=pass_at_k", "advantage.k=64"], "advantage.k", ["got 64", "train.group"]),
    (
        ["advantage={baseline: pass_at_k, scale: batch, k: 2}"],
        "advantage.scale",
        ["got 'batch'", "advantage.scale=group"],
    ),
    (["objective.gate=pg", "objective.dual=3.0"], "objective.dual", ["got 3", "'pg'", "objective.gate=ppo"]),
    (["objective.tau_neg=2.0"], "objective.tau_neg", ["got 2", "'ppo'", "objective.gate=sigmoid"]),
    (
        ["objective.gate=log_clip_then_mean", "objective.level=seq_sum"],
        "objective.level",
        ["got 'seq_sum'", "objective.level=token"],
    ),
    (["train.keep_by=magnitude"], "train.keep_by", ["got 'magnitude'", "set train.keep"]),
    (["train.keep_by=magnitude", "train.keep=64"], "train.keep", ["got 64", "train.group"]),
    (["watch.ignore=[clip_nune]"], "watch.ignore", ["'clip_nune'", "hacking", "did you mean 'clip_none'?"]),
    (["watch.on_alarm=rolback"], "watch.on_alarm", ["'rolback'", "did you mean 'rollback'?"]),
    (["watch.drift=1"], "watch.drift", ["got 1", "a number > 1"]),
    (["rewards.shapes.use=shpaes"], "rewards.shapes.use", ["'shpaes'", "did you mean 'shapes'?"]),
    (["rewards.shapes.args.strickt=1"], "rewards.shapes.args.strickt", ["'strickt'", "did you mean 'strict'?"]),
    (["rewards.shapes.weight=0"], "rewards.shapes.weight", ["got 0 for every reward", "non-zero"]),
    (["rewards.a-b={use: shapes}"], "rewards.a-b", ["'a-b'", "rename"]),
    (["rewards.total={use: shapes}"], "rewards.total", ["'total'", "rename"]),
    (
        ["rewards.shapes.gate={by: shapse, least: 1}"],
        "rewards.shapes.gate.by",
        ["'shapse'", "another reward", "strict"],
    ),
    (["rewards.shapes.gate={by: strict, least: yes}"], "rewards.shapes.gate.least", ["got 'yes'", "a number"]),
    (["rewards.strict.gate={by: shapes, least: 1}"], "rewards.strict.gate", ["witness", "remove"]),
    (["rewards.shapes.gate={by: strict, least: 1, otherwise: x}"], "rewards.shapes.gate.otherwise", ["lowest"]),
    (["rewards.shapes.overlap=true", "rewards.shapes.offload=true"], "rewards.shapes.offload", ["overlap"]),
    (["rewards.shapes.failure_limit=1.5"], "rewards.shapes.failure_limit", ["got 1.5", "[0, 1]"]),
    (["rewards.shapes.when={}"], "rewards.shapes.when", ["name a key"]),
    (["rewards.shapes.cache=3"], "rewards.shapes.cache", ["got 3", "the path of a file"]),
    (["rewards.b.weight=1"], "rewards.b.use", ["missing", "the name of a reward"]),
    (["prompts.train=shapes/trian"], "prompts.train", ["'shapes/trian'", "did you mean 'shapes/train'?"]),
    (["prompts.train=missing.txt"], "prompts.train", ["'missing.txt'", "an existing"]),
    (["prompts.limit=15"], "prompts.limit", ["got 15", "train.prompts = 16"]),
    (["prompts.heldout=null", "eval.prompts=4"], "eval.prompts", ["got 4", "no held-out prompts"]),
    (["eval.prompts=0"], "eval.prompts", ["got 0", "a whole number >= 1"]),
    (["eval.batch=0"], "eval.batch", ["got 0", "a whole number >= 1"]),
    (["dtype.logp=bfloat16"], "dtype.logp", ["'bfloat16'", "float32 or float64"]),
    (["device=gpu"], "device", ["'gpu'", "cuda"]),
    (["seed=-1"], "seed", ["got -1", "a whole number in [0, 2^32)"]),
    (["pipeline.num_inference_steps=4"], "pipeline.num_inference_steps", ["got 4", "use sampler.steps"]),
    (["train.lr"], "override", ["'train.lr'", "dotted.key=value"]),
    (["train..lr=1"], "override", ["'train..lr=1'", "train.lr=1e-4"]),
    (["train.betas=[1"], "train.betas", ["'[1'", "not valid YAML", "quote it"]),
    (["train.lr.x=1"], "train.lr.x", ["train.lr is 0.0008", "not a mapping"]),
]


LANGUAGE_MISTAKES = [
    (["generation.max_new_tokens=0"], "generation.max_new_tokens", ["got 0", "a whole number >= 1"]),
    (["generation.max_new_tokens=null"], "generation.max_new_tokens", ["missing", "a whole number >= 1"]),
    (["generation.temperature=0"], "generation.temperature", ["got 0", "a number > 0", "eval.temperature may be 0"]),
    (["generation.top_k=0"], "generation.top_k", ["got 0", "or null"]),
    (["generation.top_p=1.5"], "generation.top_p", ["got 1.5", "(0, 1]"]),
    (["generation.chat_template=yes"], "generation.chat_template", ["'yes'", "auto, true or false"]),
    (["generation.temprature=1"], "generation.temprature", ["did you mean 'temperature'?"]),
    (["generation={max_new_tokens: 8, chat_template: false, system: be brief}"], "generation.system", ["no chat"]),
    (["sampler.steps=4"], "sampler", ["{'steps': 4}", "language model's recipe", "remove sampler"]),
    (["pipeline.height=32"], "pipeline", ["{'height': 32}", "language model's recipe"]),
    (["eval.steps=4"], "eval.steps", ["got 4", "no denoising steps"]),
    (["eval.temperature=-1"], "eval.temperature", ["got -1", "a number >= 0 or null"]),
    (["offload=true"], "offload", ["offload=false"]),
    (["lora.modules=[transformer]"], "lora.modules", ["one module"]),
    (["model=shapes-flux"], "model", ["'shapes-flux', a diffusers pipeline", "language model"]),
    (["model=arithmetic-qwen"], "model", ["did you mean 'arithmetic-qwen2'?"]),
    (["prompts.train=arithmetic/trian"], "prompts.train", ["did you mean 'arithmetic/train'?"]),
    (["rewards.exact.overlap=true"], "rewards.exact.overlap", ["complete at once", "remove"]),
    (["rewards.exact.use=exact_mach"], "rewards.exact.use", ["did you mean 'exact_match'?"]),
    (["rewards.exact.args.patern=x"], "rewards.exact.args.patern", ["did you mean 'pattern'?"]),
    (["train.updates=3"], "train.updates", ["train.prompts = 16"]),
]


@pytest.mark.parametrize(("overrides", "place", "words"), LANGUAGE_MISTAKES, ids=lambda v: v[-1])
def test_a_mistake_in_a_language_recipe_is_one_line(overrides, place, words):
    error = refused(*overrides, recipe="tiny_lm_grpo")
    assert error.place == place and error.more == 0
    assert all(word in str(error) for word in words), str(error)


def test_a_folder_tells_what_it_holds(tmp_path):
    kinds = [[kind.name for kind in kinds_of_model(m)] for m in ("shapes-flux", "owner/name", str(tmp_path))]
    assert kinds == [["denoising"], [], []]
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
    assert [kind.name for kind in kinds_of_model(str(tmp_path))] == ["language"]
    assert load("tiny_lm_grpo", [f"model={tmp_path}"]).model == str(tmp_path)
    for unreadable in ("{}", "{"):
        (tmp_path / "config.json").write_text(unreadable)
        error = refused(f"model={tmp_path}", recipe="tiny_lm_grpo")
        assert error.place == "model" and "config.json" in str(error)


def test_what_the_language_recipe_is_published_with():
    recipe = load("grpo_qwen")
    assert (recipe.train.group, recipe.train.updates, recipe.train.lr) == (5, 4, 3e-6)
    assert (recipe.objective.clip, recipe.objective.dual, recipe.objective.kl) == (0.2, 3.0, 0.001)
    assert (recipe.objective.kl_kind, recipe.objective.aggregate) == ("k3", "decision_mean")
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.generation.max_new_tokens) == (64, 32, 1024)
    assert (recipe.advantage.unbiased, recipe.advantage.eps, recipe.eval.temperature) == (True, 1e-6, 0)


@pytest.mark.parametrize(("overrides", "place", "words"), MISTAKES, ids=lambda v: v[-1] if isinstance(v, list) else v)
def test_a_mistake_is_one_line_with_place_value_and_remedy(overrides, place, words):
    error = refused(*overrides)
    assert error.place == place
    assert all(word in str(error) for word in words), str(error)
    assert error.more == 0, str(error)


def test_several_mistakes_show_the_first_and_their_number():
    assert str(refused("train.lr=x", "seed=-1", "device=gpu")).endswith("(and 2 more)")
    assert str(refused("train.group=1", "train.updates=3")).endswith("(and 1 more)")


def test_a_misspelt_key_is_named_before_the_key_that_it_makes_missing():
    error = refused("prompts={trian: a.txt}")
    assert error.place == "prompts.trian" and "did you mean 'train'?" in str(error) and error.more == 1


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("model: a\nmodel: b\n", "bad.yaml:2", "'model' is given twice"),
        ("a: [1\n", "bad.yaml:2", "YAML"),
        ("- 1\n", "bad.yaml", "a mapping of keys"),
        ("", "bad.yaml", "got None"),
    ],
)
def test_a_file_that_is_no_mapping_names_its_line(text, place, words, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(str(path))
    assert place in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_recipe_suggests_one_that_ships():
    with pytest.raises(RecipeError, match="did you mean 'quickstart'"):
        load("quickstrat")


def test_build_takes_a_mapping():
    values = yaml.safe_load(dump(load(BASE)))
    assert build(values, name="x") == load(BASE)


def test_a_bad_recipe_is_answered_without_torch():
    code = (
        "import sys\nfrom flowrl.recipe.load import load\n"
        "for wrong in (['train.updates=3'], ['sampler.step=ode'], ['rewards.shapes.use=x'], []):\n"
        f"    try: load({BASE!r}, wrong)\n    except ValueError: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class _Pipeline:
    def __call__(self, prompt=None, height=None, guidance_scale=3.5, num_inference_steps=28, **_): ...


class _Closed:
    def __call__(self, prompt=None, height=None, guidance_scale=3.5, num_inference_steps=28): ...


def test_pipeline_arguments_are_checked_against_the_signature():
    check_call(_Closed, {"height": 8, "guidance_scale": 1.0})
    check_call(_Pipeline, {"anything": 1})
    with pytest.raises(
        RecipeError, match=r"pipeline\.guidence_scale: got 3, .*did you mean 'guidance_scale'\?"
    ) as caught:
        check_call(_Closed, {"guidence_scale": 3})
    assert "num_inference_steps" not in str(caught.value)  # flowrl's own: not offered


def test_pipeline_class_of_a_local_folder(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert pipeline_class(str(tmp_path)) == "FluxPipeline"
    assert pipeline_class("owner/name") is None
    assert load(BASE, [f"model={tmp_path}"]).model == str(tmp_path)


def test_what_is_said_beside_an_own_step_is_checked_as_it_is_of_one_that_ships(tmp_path, monkeypatch):
    (tmp_path / "mine_facts.py").write_text(
        "from samplers.facts import facts\n"
        "@facts(unit_variance=True, share=True)\ndef said(x, v, s, s_next, *, noise, s_cap): ...\n"
        "def marked(x, v, s, s_next, *, noise, s_cap): ...\nmarked.unit_variance = True\n"
        "def plain(x, v, s, s_next, *, noise, s_cap): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    for step in ("said", "marked"):
        error = refused("objective.kl_mask=1e-5", f"sampler.step=mine_facts.{step}")
        assert error.place == "objective.kl_mask" and f"step 'mine_facts.{step}' is not scored by" in str(error)
    load(BASE, ["objective.kl_mask=1e-5", "sampler.step=mine_facts.plain"])
    assert refused("sampler.step=mine_facts.said", "sampler.noise=1.5").place == "sampler.noise"
    load(BASE, ["sampler.step=mine_facts.plain", "sampler.noise=1.5"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["generation.tree={kind: treepo, rounds: 2}"], "generation.tree.rounds: .*reads only segment, width, roots"),
        (["generation.tree={kind: tree_grpo}"], "train.group: got 12, but generation.tree makes 6 completions"),
        (["generation.tree={kind: treepo, roots: [3, 2]}"], "generation.tree.roots: got .*that do not fall"),
        (["generation.tree={kind: treepo}", "generation.again={kind: hints}"], "generation.again: got 'hints' beside"),
        (["generation.again={kind: hints, shares: [0.5, 0.5]}"], "generation.again.shares: .*that rise"),
        (["generation.again={kind: hints, text: no}"], r"generation.again.text: .*a text with \{hint\} in it"),
        (["generation.again={kind: values, split: x, segment: 3}"], "generation.again.split: given beside segment"),
        (["generation.partial=9", "train.refill=1"], "generation.partial: got a number beside train.refill"),
        (["generation.force={text: x, left: 40}"], "generation.force.left: got 40, accepted: below"),
        (["advantage.credit=prefix", "advantage.combine=sum"], "advantage.credit: got 'prefix', which reads .*treepo"),
        (["objective.preset=vineppo", "advantage.scale=group"], "advantage.scale: .*accepted: none or whiten"),
        (["objective.preset=treepo", "advantage.combine=per_reward"], "advantage.combine: .*set advantage.combine=sum"),
    ],
)
def test_completions_in_parts_that_cannot_work_are_refused(overrides, says):
    with pytest.raises(RecipeError, match=says) as error:
        load("tiny_lm_grpo", overrides)
    assert "\n" not in str(error.value)
