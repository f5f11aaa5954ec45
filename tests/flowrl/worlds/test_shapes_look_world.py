"""The world shapes-look: its questions, its pictures, its tool, its documents, its pretraining, and its model."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from flowrl import names
from flowrl.reading import prompts
from flowrl.worlds import stage
from flowrl.worlds.shapes_look import build, eye, pretrain
from flowrl.worlds.shapes_look.corpus import GUESS, RIGHT, SHARES, TWICE, WHERE, Document, call, document, lesson, looks
from flowrl.worlds.shapes_look.files import picture_file, picture_of
from flowrl.worlds.shapes_look.model import MEAN, STD, make_model, make_processor
from flowrl.worlds.shapes_look.pool import PATHS, Pool
from flowrl.worlds.shapes_look.render import part, render, shrink
from flowrl.worlds.shapes_look.scenes import COLORS, QUADRANTS, SHAPES, SIDE, draw, questions
from flowrl.worlds.shapes_look.zoom import quadrant_of

ASSET = names.MODELS["look-llava"]


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def test_questions_are_balanced_and_no_picture_is_asked_about_twice():
    train, heldout = questions("train"), questions("heldout")
    assert (len(train), len(heldout)) == (600, 200)
    assert len({q.things for q in (*train, *heldout)}) == 800
    for split in (train, heldout):
        kinds = Counter((q.asked.size, q.asked.shape) for q in split)
        assert max(kinds.values()) - min(kinds.values()) <= 1 and len(kinds) == 12
        assert all(q.asked in q.things and len({o.color for o in q.things}) == 3 for q in split)


def test_objects_are_apart_and_small_ones_lie_in_one_cell():
    rng = random.Random(0)
    for _ in range(200):
        things = draw(rng)
        for i, a in enumerate(things):
            assert a.radius < min(a.x, a.y) and max(a.x, a.y) + a.radius < SIDE
            if a.size == "small":
                assert int((a.x - a.radius) // 32) == int((a.x + a.radius) // 32)
            for b in things[:i]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius


def test_the_area_of_an_object_is_where_its_quadrants_are():
    for question in questions("heldout")[:40]:
        picture, area = render(question.things, question.seed)
        assert picture.shape == (3, 128, 128) and area.shape == (3, 16, 16)
        small = [(k, o) for k, o in enumerate(question.things) if o.size == "small"]
        for k, thing in small:
            inside = part(part(area[k], thing.quadrants[0]), thing.quadrants[1])
            assert inside.sum() == pytest.approx(area[k].sum().item()) and inside.sum() > 20
        everything = 1.0 * sum(area)
        assert everything.max() <= 64.01  # objects do not cover one another


def test_the_model_sees_what_the_pretraining_saw_on_every_level(processor):
    pool = Pool("seen", 3)
    index = torch.tensor([2])  # the third alone
    whole = Image.fromarray(pool.pictures[2].permute(1, 2, 0).numpy())
    for path in (PATHS[0], PATHS[3], PATHS[14]):
        picture = whole
        for quadrant in path:
            picture = quadrant_of(picture, quadrant)
        seen = processor.image_processor(picture, return_tensors="pt")["pixel_values"] * STD + MEAN
        assert (seen - pool.views(index, path)[0]).abs().max() < 1.01 / 255
    assert shrink(pool.pictures[:, :, :32, :32]).shape == (3, 3, 32, 32)


def test_the_zoom_gives_pixels_as_they_are_and_refuses_what_it_cannot():
    question = questions("heldout")[5]
    picture = picture_of(question)
    half = quadrant_of(picture, "bottom-left")
    assert half.size == (64, 64) and half.getpixel((3, 5)) == picture.getpixel((3, 69))
    least = quadrant_of(half, "top-right")
    assert least.size == (32, 32) and least.getpixel((0, 1)) == picture.getpixel((32, 65))
    with pytest.raises(ValueError, match="as near as it gets"):
        quadrant_of(least, "top-left")
    with pytest.raises(ValueError, match="choose top-left, top-right"):
        quadrant_of(picture, "middle")


def test_prompts_carry_their_answers_and_their_pictures(tmp_path):
    for split in ("train", "heldout"):
        found = prompts.load(f"shapes-look/{split}")
        assert [p.text for p in found] == [q.text for q in questions(split)]
        assert len({p.id for p in found}) == len({p.media for p in found}) == len(found)
        assert {p.meta["kind"] for p in found} == {"small", "large"}
        third, question = found[2], questions(split)[2]
        assert third.meta["answer"] == question.asked.shape and third.meta["color"] in third.text
        with Image.open(third.media[0]) as picture:
            assert picture.tobytes() == picture_of(question).tobytes()
    first = picture_file(questions("train")[2], "x", tmp_path)
    other = picture_file(questions("train")[3], "x", tmp_path)  # what a file shows is told by its name
    assert first != other and {first, other} == set(tmp_path.iterdir())


def test_documents_mix_manners_and_look_at_large_objects_as_often_as_at_small_ones():
    rng, number = random.Random(3), 6000
    pool = Pool("documents", 60)
    small, large = ([o for things in pool.scenes for o in things if o.size == size] for size in ("small", "large"))
    for objects in (small, large):
        found = [(o, document(o, rng)) for o in rng.choices(objects, k=number)]
        asked = [(o, d) for o, d in found if d.question.startswith("What")]
        assert len(asked) / number == pytest.approx(1 - WHERE, abs=0.02)
        zooming = [(o, d) for o, d in asked if d.looks]
        assert len(zooming) / len(asked) == pytest.approx(SHARES["look"], abs=0.03)
        assert all(d.answer == f"<answer>{o.shape}</answer>" for o, d in zooming)
        assert sum(len(d.looks) == 2 for _, d in zooming) / len(zooming) == pytest.approx(TWICE, abs=0.04)
        right = [o.quadrants[0] == d.looks[0] for o, d in zooming]
        assert sum(right) / len(right) == pytest.approx(RIGHT + (1 - RIGHT) / 4, abs=0.04)
        direct = [d.answer == f"<answer>{o.shape}</answer>" for o, d in asked if not d.looks]
        wanted = SHARES["direct"] * (1 - GUESS * 5 / 6) / (SHARES["direct"] + SHARES["careless"])
        assert sum(direct) / len(direct) == pytest.approx(wanted, abs=0.03)


def test_a_second_look_is_aimed_only_after_a_right_first_one():
    rng, thing = random.Random(4), questions("train")[7].asked
    drawn = [looks(thing, rng) for _ in range(6000)]
    for hit, share in ((True, RIGHT + (1 - RIGHT) / 4), (False, 0.25)):
        second = [
            two[1] == thing.quadrants[1] for two in drawn if len(two) == 2 and (two[0] == thing.quadrants[0]) == hit
        ]
        assert sum(second) / len(second) == pytest.approx(share, abs=0.05)


def test_text_is_read_and_written_back(processor):
    tokenizer = processor.tokenizer
    for text in (call("top-left"), "<answer>ring</answer>", "Where is the red object?", 'no {"such": 3} thing!\n'):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(call("bottom-right")).input_ids) == 5
    assert all(len(tokenizer(word).input_ids) == 1 for word in (*SHAPES, *COLORS, *QUADRANTS))


def test_a_document_is_the_conversation_that_the_processor_renders(processor):
    reader = pretrain.Reader(processor)
    ids, said, block = reader(
        Document("What shape is the red object?", ("top-left", "bottom-right"), "<answer>ring</answer>")
    )
    chat = pretrain.messages("What shape is the red object?", ("top-left", "bottom-right"))
    chat.append({"role": "assistant", "content": "<answer>ring</answer>"})
    text = processor.apply_chat_template(chat, tokenize=False)
    pictures = [Image.new("RGB", (side, side)) for side in (128, 64, 32)]
    assert not any(block) and ids == processor(text=text, images=pictures)["input_ids"][0]
    spoken = processor.tokenizer.decode([i for i, own in zip(ids, said, strict=True) if own])
    assert spoken == f"{call('top-left')}</s>{call('bottom-right')}</s><answer>ring</answer></s>"


def test_the_questions_of_a_lesson_are_read_as_if_each_were_the_only_one(processor):
    torch.manual_seed(0)
    model, reader = make_model(processor).eval(), pretrain.Reader(processor)
    asked = [("What shape is the red object?", "ring"), ("Where is the blue object?", "top-left")]
    asked.append(("Where is the black object?", "bottom-right"))
    seen = torch.randn(1, 16, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = pretrain._loss(model, [reader.lesson(asked)], seen, reader)
        alone = [pretrain._loss(model, [reader.lesson([one])], seen, reader) for one in asked]
        beside = pretrain._loss(
            model, [reader(Document(asked[0][0], (), "x")), reader.lesson(asked)], seen.repeat(2, 1, 1), reader
        )
    apart = [one.item() for one in alone]
    assert whole.item() == pytest.approx(sum(apart) / 3, abs=1e-5) and len({round(one, 3) for one in apart}) == 3
    ids = reader.prompt(asked[2][0]) + reader.ids("<answer>")  # the third as a prompt, by the model's own forward
    embedded = model.get_input_embeddings()(torch.tensor([ids]))
    at = torch.tensor([ids])[..., None] == reader.image
    embedded = embedded.masked_scatter(at, model.model.multi_modal_projector(seen))
    logits = model(inputs_embeds=embedded).logits[0, -1].log_softmax(-1)
    assert -logits[reader.ids("bottom-right")[0]].item() == pytest.approx(apart[2], abs=1e-5)
    assert beside.isfinite() and beside.item() != whole.item()


def test_lessons_ask_what_can_be_seen():
    rng, pool = random.Random(6), Pool("lessons", 40)
    for things in pool.scenes * 5:
        view, asked = lesson(things, rng)
        for question, answer in asked:
            thing = next(o for o in things if o.color in question)
            place = question.startswith("Where")
            assert answer == (thing.quadrants[len(view)] if place else thing.shape)
            assert (thing.size == "small") == place and (not view or thing.quadrants[0] == view[0])


def test_the_template_renders_calls_as_the_model_writes_them(processor):
    asked = {"role": "user", "content": "What"}
    arguments = {"quadrant": "top-left"}
    called = {"type": "function", "function": {"name": "quadrant", "arguments": arguments}}
    structured = [asked, {"role": "assistant", "tool_calls": [called]}]
    plain = [asked, {"role": "assistant", "content": call("top-left")}]
    one, other = (processor.apply_chat_template(chat, tokenize=False) for chat in (structured, plain))
    assert one == other == f"<s><|user|>What<|assistant|>{call('top-left')}</s>"
    with pytest.raises(Exception, match="a message is by system, user, assistant or tool"):
        processor.apply_chat_template([{"role": "judge", "content": "x"}], tokenize=False)


def test_features_of_the_pool_are_those_that_the_whole_model_works_with(processor):
    torch.manual_seed(0)
    model = make_model(processor).eval()
    pixels = Pool("whole", 2).views(torch.tensor([1]), ("top-left",))[0]
    with torch.no_grad():
        ours = model.model.multi_modal_projector(eye.features_of(model.model.vision_tower, pixels))
        theirs = model.model.get_image_features(pixel_values=(pixels - MEAN) / STD).pooler_output
    assert torch.equal(ours[0], theirs[0])


def test_a_short_build_loads_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    short = {"eye_cycles": ((3, 0.5),), "cycles": ((2, 0.5), (2, 0.5)), "scenes": 8}
    monkeypatch.setattr(build, "questions", lambda split: questions(split)[:12])
    monkeypatch.setattr(stage, "CHECKPOINT_SECONDS", -1)  # after every step
    measured = build.build(tmp_path / "whole", **short)
    assert 0 <= measured.all <= 0.3 and not (tmp_path / "whole" / ".build").exists()
    given, calls = pretrain._loss, []

    def until_the_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return given(*arguments)

    monkeypatch.setattr(pretrain, "_loss", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        build.build(tmp_path / "two", **short)
    build.build(tmp_path / "two", **short)
    assert len(calls) == 3 + 2
    states = [AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "two")]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert "What it does where it is led" in (tmp_path / "whole" / "README.md").read_text()


def test_the_shipped_model_is_what_its_card_says():
    assert sum(p.stat().st_size for p in ASSET.rglob("*") if p.is_file()) < 2_000_000
    model = AutoModelForImageTextToText.from_pretrained(ASSET, dtype=torch.float32)
    assert isinstance(model, LlavaForConditionalGeneration) and sum(p.numel() for p in model.parameters()) < 450_000
    shipped, card = AutoProcessor.from_pretrained(ASSET), (ASSET / "README.md").read_text()
    sampled = build.measure(model, shipped)
    line = f"| with the tool, temperature 1 | {sampled.all:.3f} | {sampled.small:.3f} | {sampled.large:.3f} |"
    assert line in card and 0.3 <= sampled.all <= 0.5
    assert build.measure(model, shipped, turns=1, greedy=True).small <= 0.25
    aims = build.Aims.of(model, shipped, questions("heldout"))
    assert aims.looked["small"] > 0.9 and aims.direct["large"] > 0.8 and aims.direct["small"] <= 0.25
    assert min(*aims.first.values(), *aims.second.values()) > 0.4  # a zoom finds the object often enough to pay


@pytest.mark.slow
def test_the_model_can_be_made_again(tmp_path: Path):
    measured = build.build(tmp_path)
    assert 0.3 <= measured.all <= 0.5
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
    shipped = AutoModelForImageTextToText.from_pretrained(ASSET).state_dict()
    assert max((again[name] - value).abs().max() for name, value in shipped.items()) < 0.05
