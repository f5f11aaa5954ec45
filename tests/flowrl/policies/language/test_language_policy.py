"""A language model as a policy against one sequence at a time: draws, log-probs, masks, divergence, adapters, files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from tokenizers import Tokenizer as Tokens
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from flowrl.contracts import LogProbs, Prompt, View
from flowrl.core.backward import fill_reference
from flowrl.core.learning.learner import Learner
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.drawing import decoding, reading
from flowrl.policies.language.drawing.ends import token_ends
from flowrl.policies.language.drawing.forwards import left_padded
from flowrl.policies.language.drawing.stopping import stop_ids
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.noise import Key, token_uniforms
from flowrl.policies.recomputing import checkpoint_gradients
from flowrl.policies.weights import weights_of
from flowrl.worlds.arithmetic.model import make_tokenizer
from language_support import PLAN, PROMPTS, STOP, alone, model, policy, replayed
from samplers.tokens import Generation, cut, draw

ROWS = list(range(9))
CUTS = [Generation(12), Generation(12, 0.6), Generation(12, 1.3, top_k=4), Generation(12, 1.0, None, 0.6)]


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_what_was_said_is_less_likely_and_rare_tokens_are_left_out_but_scores_are_those_of_the_model(temperature):
    plan = Generation(10, temperature, min_p=0.2, repetition_penalty=1.7)
    network = model()
    subject = policy(network)
    rollout = subject.rollout(PROMPTS, group_size=3, plan=plan, seed=4)
    plain = subject.rollout(PROMPTS, group_size=3, plan=replace(plan, min_p=0.0, repetition_penalty=1.0), seed=4)
    assert not torch.equal(rollout.replay.tokens, plain.replay.tokens)
    for row in (1, 5, 8):
        number, ids = int(rollout.samples.lengths[row]), rollout.replay.prompts[row]
        tokens = rollout.replay.tokens[row, :number].tolist()
        logits = alone(network, ids, tokens)
        uniform = token_uniforms([Key(4, PROMPTS[row // 3].id, row % 3)], 10)[0, :number]
        for k in range(number):
            told = logits[k].clone()
            for said in {*ids, *tokens[:k]}:
                told[said] = told[said] / 1.7 if told[said] > 0 else told[said] * 1.7
            share = (told / (temperature or 1.0)).softmax(-1)
            assert share[tokens[k]] >= 0.2 * share.max() * (1 - 1e-5)
            assert draw(told[None], uniform[k : k + 1], replace(plan, repetition_penalty=1.0))[0] == tokens[k]
        logp = logits.log_softmax(-1)[torch.arange(number), tokens]
        torch.testing.assert_close(rollout.rollout_logp[row, :number], logp, atol=1e-5, rtol=0)


def test_a_completion_ends_with_a_text_that_it_has_written():
    plan = Generation(24)
    free = policy().rollout(PROMPTS, group_size=3, plan=plan, seed=4)
    texts = free.samples.texts
    mark = next(text[4:6] for text in texts if len(text) > 9 and text[4:6] not in text[:5])
    subject = policy(stop=[mark, "never written"])
    ended = subject.rollout(PROMPTS, group_size=3, plan=plan, seed=4)
    cut_short = 0
    for row, whole in enumerate(texts):
        begin, found, _ = whole.partition(mark)
        if not found:
            assert ended.samples.texts[row] == whole
            continue
        cut_short += 1
        number = int(ended.samples.lengths[row])
        assert ended.samples.texts[row].startswith(begin + mark) and not ended.samples.truncated[row]
        assert ended.samples.lengths[row] <= free.samples.lengths[row]
        assert mark not in subject.tokenizer.decode(ended.replay.tokens[row, : number - 1], skip_special_tokens=True)
        assert torch.equal(ended.replay.tokens[row, :number], free.replay.tokens[row, :number])
        assert ended.mask[row].sum() == number
    assert cut_short
    with pytest.raises(ValueError, match="got an empty text"):
        policy(stop=[""])


def gpt2():
    """A family with learned positions, which left padding would shift."""
    torch.manual_seed(0)
    made = GPT2LMHeadModel(GPT2Config(vocab_size=len(make_tokenizer()), n_positions=64, n_embd=32, n_layer=2, n_head=2))
    with torch.no_grad():
        made.transformer.ln_f.weight.mul_(4.0)
    made.generation_config.eos_token_id = STOP
    return made.eval()


def with_lora(made=None, *, moved: float = 0.0, **options):
    """A policy with adapters, its outer factors moved away from 0."""
    subject = policy(made, **options)
    adapters.add_lora(subject.modules, rank=4, alpha=8, targets="all")
    generator = torch.Generator().manual_seed(5)
    for name, parameter in subject.model.named_parameters():
        if "lora_B" in name and moved:
            parameter.data += moved * torch.randn(parameter.shape, generator=generator)
    return subject


@pytest.mark.parametrize("made", [model, gpt2])
@pytest.mark.parametrize("plan", CUTS, ids=str)
def test_every_token_is_the_one_a_lone_sequence_would_draw(made, plan):
    """Draws, log-probs, lengths and texts of a padded batch, recomputed token by token without padding or cache."""
    network = made()
    subject = policy(network)
    rollout = subject.rollout(PROMPTS, group_size=3, plan=plan, seed=4, first=6)
    lengths = rollout.mask.sum(1)
    assert len(set(lengths.tolist())) > 3 and lengths.max() <= 12
    assert torch.equal(rollout.samples.lengths, lengths)
    for row in ROWS:
        prompt, index = PROMPTS[row // 3], 6 + row % 3
        number = int(lengths[row])
        tokens = rollout.replay.tokens[row, :number]
        assert rollout.replay.prompts[row] == subject.encode(prompt.text)
        logits = alone(network, rollout.replay.prompts[row], tokens.tolist())
        uniform = token_uniforms([Key(4, prompt.id, index)], 12)[0, :number]
        assert torch.equal(draw(logits, uniform, plan), tokens)
        logp = (logits / plan.temperature).log_softmax(-1)[torch.arange(number), tokens]
        torch.testing.assert_close(rollout.rollout_logp[row, :number], logp, atol=1e-5, rtol=0)
        assert rollout.mask[row].tolist() == [k < number for k in range(rollout.mask.shape[1])]
        ends = [t in subject.stop for t in tokens.tolist()]
        assert not any(ends[:-1]) and (ends[-1] or number == 12)
        assert bool(rollout.samples.truncated[row]) != ends[-1]
        shown = tokens[:-1] if ends[-1] else tokens
        assert rollout.samples.texts[row] == subject.tokenizer.decode(shown, skip_special_tokens=True)
    assert rollout.samples.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [p.id for p in rollout.samples.prompts] == list("aaabbbccc")


@pytest.mark.parametrize("plan", CUTS, ids=str)
def test_entropies_are_those_of_the_distribution_before_the_cut(plan):
    """Kept where they are asked for, in parts or at once; draws are the same with and without."""
    network = model()
    subject, plain = policy(network, keep_entropy=True, max_rows=4), policy(network)
    rollout, other = (p.rollout(PROMPTS, group_size=3, plan=plan, seed=4) for p in (subject, plain))
    assert other.step_stats == {} and torch.equal(rollout.replay.tokens, other.replay.tokens)
    found = rollout.step_stats["entropy"]
    assert found.shape == rollout.mask.shape and (found[~rollout.mask] == 0).all()
    for row in ROWS:
        tokens = rollout.replay.tokens[row, : int(rollout.mask[row].sum())]
        logp = (alone(network, rollout.replay.prompts[row], tokens.tolist()) / plan.temperature).log_softmax(-1)
        expected = -(logp.exp() * logp).sum(-1)
        torch.testing.assert_close(found[row, : len(tokens)], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("made", [model, gpt2])
def test_a_replay_is_its_rollout_however_it_is_cut(made):
    subject = policy(made())
    rollout = subject.rollout(PROMPTS, group_size=3, plan=replace(PLAN, temperature=0.8), seed=0)
    for parts in ([ROWS], [[r] for r in ROWS], [[8, 0, 4], [1, 2, 3, 5, 6, 7]]):
        score = replayed(subject, rollout, parts)
        assert score.columns.tolist() == list(range(rollout.rollout_logp.shape[1]))
        gap = (score.logp - rollout.rollout_logp).abs()[rollout.mask]
        assert gap.max() < 1e-5


@pytest.mark.parametrize("max_rows", [1, 2, 4, 8])
def test_the_cut_of_a_rollout_changes_nothing(max_rows):
    whole = policy().rollout(PROMPTS, group_size=3, plan=PLAN, seed=0)
    parts = policy(max_rows=max_rows).rollout(PROMPTS, group_size=3, plan=PLAN, seed=0)
    assert torch.equal(whole.replay.tokens, parts.replay.tokens) and torch.equal(whole.mask, parts.mask)
    torch.testing.assert_close(whole.rollout_logp, parts.rollout_logp, atol=1e-5, rtol=0)
    assert whole.samples.texts == parts.samples.texts


def test_a_sample_is_named_by_seed_prompt_and_index_alone():
    subject = policy()
    many = subject.rollout(PROMPTS, group_size=4, plan=PLAN, seed=0)
    lone = subject.rollout([PROMPTS[2]], group_size=1, plan=PLAN, seed=0, first=3)
    assert lone.samples.texts == [many.samples.texts[11]]
    longer = subject.rollout([PROMPTS[2]], group_size=1, plan=replace(PLAN, max_new_tokens=30), seed=0, first=3)
    shared = lone.replay.tokens.shape[1]
    assert torch.equal(longer.replay.tokens[:, :shared], lone.replay.tokens)
    other = subject.rollout(PROMPTS, group_size=4, plan=PLAN, seed=1)
    assert other.samples.texts != many.samples.texts
    assert len(set(many.samples.texts)) > 6


@pytest.mark.parametrize("max_rows", [None, 1, 3])
def test_the_same_prompt_twice_draws_two_different_groups(max_rows):
    subject = policy(max_rows=max_rows)
    rollout = subject.rollout([PROMPTS[0], PROMPTS[2], PROMPTS[0]], group_size=3, plan=PLAN, seed=0)
    assert len(set(rollout.samples.texts[:3] + rollout.samples.texts[6:])) > 4
    once = subject.rollout([PROMPTS[0]], group_size=3, plan=PLAN, seed=0)
    assert rollout.samples.texts[:3] == once.samples.texts
    again = policy().rollout([PROMPTS[0], PROMPTS[0]], group_size=3, plan=PLAN, seed=0)
    assert rollout.samples.texts[6:] == again.samples.texts[3:]


def test_greedy_completions_are_those_of_transformers_and_train_nothing():
    network = model()
    subject = policy(network)
    rollout = subject.rollout(PROMPTS, group_size=1, plan=Generation(12, 0.0), seed=0)
    assert not rollout.mask.any()
    for row, ids in enumerate(rollout.replay.prompts):
        made = network.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12, pad_token_id=0)
        number = int(rollout.replay.length[row])
        assert rollout.replay.tokens[row, :number].tolist() == made[0, len(ids) :].tolist()


def test_padding_is_on_the_left():
    ids, mask = left_padded([[5, 6, 7], [8]], 0, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_replay_has_no_say_from_masked_columns_and_gradient_reaches_the_adapters_alone():
    subject = with_lora()
    rollout = subject.rollout(PROMPTS, group_size=3, plan=PLAN, seed=0)

    def gradients(parts):
        found = []
        for part in parts:
            subject.look(
                rollout, torch.tensor(part), View(), lambda s, part=part: (s.logp * rollout.mask[part]).sum().backward()
            )
        for name, p in subject.model.named_parameters():
            assert (p.grad is not None) == ("lora_" in name)
            if p.grad is not None:
                found.append(p.grad.clone())
                p.grad = None
        return found

    whole, cut_up = gradients([ROWS]), gradients([[0, 5], [1, 2, 8], [3, 4], [6, 7]])
    assert len(whole) == len(list(subject.trainable())) and any(g.abs().max() > 1e-3 for g in whole)
    for a, b in zip(whole, cut_up, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_the_reference_is_the_model_without_its_adapters():
    subject = with_lora(moved=0.3)
    rollout = subject.rollout(PROMPTS, group_size=3, plan=replace(PLAN, temperature=0.8), seed=0)
    for part in torch.arange(9).split(4):
        fill_reference(subject, rollout, part, View(exact_kl=True))
    bare, mask = replayed(policy(), rollout, [ROWS]), rollout.mask
    torch.testing.assert_close(rollout.reference[mask], bare.logp[mask], atol=1e-5, rtol=0)
    assert (rollout.reference - rollout.rollout_logp).abs()[rollout.mask].max() > 0.1
    assert all(p.requires_grad for p in subject.trainable()) and list(subject.trainable())


def test_the_exact_divergence_is_that_of_the_whole_vocabulary():
    subject = with_lora(moved=0.3)
    plan = Generation(12, 0.8)
    rollout = subject.rollout(PROMPTS, group_size=3, plan=plan, seed=0)
    score = replayed(subject, rollout, [[0, 1, 2, 3], [4, 5, 6, 7, 8]], exact_kl=True)
    tuned, base = subject.model, model()
    for row in ROWS:
        number = int(rollout.replay.length[row])
        context = rollout.replay.prompts[row], rollout.replay.tokens[row, :number].tolist()
        p, q = (torch.distributions.Categorical(logits=alone(m, *context).double() / 0.8) for m in (tuned, base))
        expected = torch.distributions.kl_divergence(p, q).float()
        torch.testing.assert_close(score.kl[row, :number], expected, atol=1e-5, rtol=1e-4)
    assert score.kl[rollout.mask].max() > 0.1
    with pytest.raises(PolicyError, match="no LoRA adapter"):
        replayed(policy(), policy().rollout(PROMPTS, plan=plan, seed=0), [[0]], exact_kl=True)


def test_the_reference_of_full_weights_is_a_copy():
    """While gradient is recorded too: the reference's logits are there before the graph is."""
    subject, plan = policy(), Generation(6, 0.8)
    adapters.train_full(subject.modules)
    learner = Learner(subject.trainable(), lr=0.1, reference=True)
    subject.weights = weights_of(subject.modules, learner.copies)
    with torch.no_grad():
        for parameter in subject.trainable():
            parameter.mul_(1.05)
    rollout = subject.rollout(PROMPTS, group_size=3, plan=plan, seed=0)
    fill_reference(subject, rollout, torch.arange(9), View())
    bare, mask = replayed(policy(), rollout, [ROWS]), rollout.mask
    torch.testing.assert_close(rollout.reference[mask], bare.logp[mask], atol=1e-5, rtol=0)
    seen: list[LogProbs] = []
    subject.look(rollout, torch.tensor([2]), View(exact_kl=True), seen.append)
    number = int(rollout.replay.length[2])
    context = rollout.replay.prompts[2], rollout.replay.tokens[2, :number].tolist()
    p, q = (torch.distributions.Categorical(logits=alone(m, *context).double() / 0.8) for m in (subject.model, model()))
    wanted = torch.distributions.kl_divergence(p, q).float()
    assert seen[0].kl is not None and seen[0].kl.requires_grad
    torch.testing.assert_close(seen[0].kl[0, :number].detach(), wanted, atol=1e-5, rtol=1e-4)


def test_adapters_load_through_peft_and_come_back(tmp_path: Path):
    subject = with_lora(moved=0.3)
    rollout = subject.rollout(PROMPTS, group_size=2, plan=PLAN, seed=0)
    adapters.save(subject.source, subject.modules, tmp_path)
    tuned = PeftModel.from_pretrained(model(), str(tmp_path))
    assert type(tuned).__name__ == "PeftModelForCausalLM"
    row = rollout.replay.prompts[0], rollout.replay.tokens[0, :3].tolist()
    torch.testing.assert_close(alone(tuned, *row), alone(subject.model, *row))
    read = adapters.lora_state(tmp_path, "model")  # without peft's prefix, which not every release strips
    assert set(read) == set(get_peft_model_state_dict(subject.model))
    again = with_lora()
    adapters.restore(again.source, again.modules, tmp_path)
    assert torch.equal(again.rollout(PROMPTS, group_size=2, plan=PLAN, seed=0).rollout_logp, rollout.rollout_logp)


def test_full_weights_are_a_transformers_folder_and_come_back(tmp_path: Path):
    subject = policy()
    adapters.train_full(subject.modules)
    with torch.no_grad():
        next(subject.trainable()).mul_(1.1)
    rollout = subject.rollout(PROMPTS, plan=PLAN, seed=0)
    adapters.save(subject.source, subject.modules, tmp_path)
    loaded = LanguagePolicy(AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path))
    restored = policy()
    adapters.restore(restored.source, restored.modules, tmp_path)
    for other in (loaded, restored):
        found = other.rollout(PROMPTS, plan=PLAN, seed=0)
        assert found.samples.texts == rollout.samples.texts and torch.allclose(
            found.rollout_logp, rollout.rollout_logp, atol=1e-5
        )


def test_recomputed_activations_give_the_same_gradient():
    found = []
    for recompute in (False, True):
        subject = with_lora(moved=0.1)
        rollout = subject.rollout(PROMPTS, plan=PLAN, seed=0)
        calls = []
        layer = subject.model.model.layers[0].self_attn
        layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if recompute:
            checkpoint_gradients(subject.modules)
            assert not any(m.training for m in layer.modules())
        subject.look(rollout, torch.arange(3), View(), lambda s: s.logp.sum().backward())
        assert len(calls) == 1 + recompute  # once more in the backward pass
        found.append([p.grad for p in subject.trainable()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_chat_templates_are_used_where_there_are_any():
    tokenizer = make_tokenizer()
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "7*8"}], tokenize=False, add_generation_prompt=True
    )
    expected = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert policy().encode("7*8") == expected == policy(template=True).encode("7*8")
    assert expected[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    plain = policy(template=False).encode("7*8")
    assert plain == tokenizer("7*8")["input_ids"] != expected
    assert plain[0] == tokenizer.bos_token_id
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] + ':' + m.content + ';' }}{% endfor %}"
    with_system = LanguagePolicy(model(), tokenizer, system="be brief")
    assert tokenizer.decode(with_system.encode("7*8")) == "s:be brief;u:7*8;"
    talk = [{"role": r, "content": c} for r, c in (("user", "1"), ("assistant", "2"), ("user", "3"))]
    assert tokenizer.decode(with_system.encode("3", (), talk)) == "s:be brief;u:1;a:2;u:3;"
    told = [{"role": "system", "content": "7"}, *talk[2:]]
    assert tokenizer.decode(with_system.encode("3", (), told)) == "s:7;u:3;"
    tokenizer.chat_template = "{% if deep %}+{% endif %}{{ messages[-1].content }}"
    deep = LanguagePolicy(model(), tokenizer, chat_arguments={"deep": True})
    assert tokenizer.decode(deep.encode("7*8")) == "+7*8"
    with pytest.raises(PolicyError, match="is a conversation of 3 messages, but no chat template is used"):
        policy(template=False).encode("3", (), talk)


def test_a_template_that_is_not_there_or_refuses_is_one_line():
    with pytest.raises(PolicyError, match="only user and assistant speak.*remove"):
        policy(system="be brief").encode("7*8")
    with pytest.raises(PolicyError, match="generation.system"):
        policy(template=False, system="be brief")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(PolicyError, match="has no chat template; set it to auto"):
        LanguagePolicy(model(), tokenizer, template=True)
    assert LanguagePolicy(model(), tokenizer).encode("7") == tokenizer("7")["input_ids"]


def test_a_model_whose_replay_is_another_is_refused(monkeypatch):
    """Positions that count the padding: the fault that left padding invites."""
    real = decoding.forward

    def shifted(made, ids, attention, keep, cache=None, shown=None):
        return real(made, ids, torch.ones_like(attention), keep, cache, shown)

    policy(gpt2()).prepare(PROMPTS[0], PLAN)
    for own in (reading, decoding):  # what a rollout reads, and what a replay does
        monkeypatch.setattr(own, "forward", shifted)
    subject = policy(gpt2())
    with pytest.raises(PolicyError, match="GPT2LMHeadModel: a replay gives log-probs that differ"):
        subject.prepare(PROMPTS[0], PLAN)
    with pytest.raises(PolicyError, match="differ"):  # and again, not only the first time
        subject.rollout(PROMPTS, plan=PLAN, seed=0)


def test_a_prompt_that_leaves_no_room_is_one_line():
    with pytest.raises(PolicyError, match=r"max_new_tokens: got 120, but prompt 'a' takes 9 of the model's 128"):
        policy().rollout(PROMPTS, plan=Generation(120), seed=0)
    with pytest.raises(PolicyError, match="has no token"):
        policy(template=False).encode("", stop=(2,))


def test_stop_ids_are_those_of_the_generation_config():
    network, tokenizer = model(), make_tokenizer()
    assert stop_ids(network, tokenizer) == tuple(STOP)
    network.generation_config.eos_token_id = 7
    assert stop_ids(network, tokenizer) == (7,)
    network.generation_config.eos_token_id = None
    assert stop_ids(network, tokenizer) == (tokenizer.eos_token_id,)


def test_progress_counts_tokens():
    subject = policy()
    subject.prepare(PROMPTS[0], PLAN)
    ticks = []
    rollout = subject.rollout(PROMPTS, group_size=3, plan=PLAN, seed=0, progress=ticks.append)
    assert sum(ticks) == int(rollout.mask.sum())
    ticks.clear()
    subject.look(rollout, torch.tensor(ROWS), View(), lambda _: None, progress=ticks.append)
    assert sum(ticks) == int(rollout.mask.sum())


def test_half_precision_is_accepted_by_its_mean_gap():
    subject = policy(model().bfloat16())
    subject.prepare(Prompt("x", "12+34"), PLAN)
    rollout = subject.rollout(PROMPTS, group_size=2, plan=PLAN, seed=0)
    assert rollout.rollout_logp.dtype == torch.float32 and rollout.rollout_logp[rollout.mask].isfinite().all()


def test_a_cut_is_scored_uncut():
    """A token's log-prob is that under the whole distribution, in the rollout as in a replay."""
    network = model()
    plan = Generation(6, top_k=2)
    rollout = policy(network).rollout(PROMPTS[:1], plan=plan, seed=0)
    number = int(rollout.replay.length[0])
    tokens = rollout.replay.tokens[0, :number]
    logits = alone(network, rollout.replay.prompts[0], tokens.tolist())
    inside = cut(logits, 2, 1.0).log_softmax(-1)[torch.arange(number), tokens]
    assert (rollout.rollout_logp[0, :number] < inside - 1e-3).any()


def test_where_tokens_end_in_their_text():
    """Also where several tokens say one character, and past what ends a row; the third row alone says the same."""
    known = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokens(models.BPE(vocab=known | {"<end>": 300}, merges=[]))
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>")
    encoded = [[known[c] for c in word] for word in ("ab", "", "aÃ©;b")]
    rows = [*encoded[:1], [300], [*encoded[2], 300]]
    tokens = torch.tensor([row + [300] * (6 - len(row)) for row in rows])
    length = torch.tensor([2, 1, 6])
    ends = token_ends(tokenizer, tokens, length, (300,))
    assert ends.tolist() == [[1, 2, 2, 2, 2, 2], [0] * 6, [1, 1, 2, 3, 4, 4]]
    assert torch.equal(token_ends(tokenizer, tokens[2:], length[2:], (300,)), ends[2:])
