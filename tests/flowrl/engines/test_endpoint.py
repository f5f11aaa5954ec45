"""The policy's endpoint, asked by OpenAI's own client over loopback, against rollouts in this process."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

import language_support
from engines_support import NAME, adapted, endpoint, saved, trimmed
from flowrl.engines.service import Completion
from flowrl.policies.noise import Key
from language_support import PROMPTS
from samplers.tokens import Generation


@pytest.fixture(scope="module")
def subject() -> Any:
    return adapted(seed=1)


@pytest.fixture(scope="module")
def client(subject: Any) -> Any:
    with endpoint(subject) as (_, url):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(url: str, path: str, **body: Any) -> tuple[int, Any]:
    """(status, answer) by another client."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if text[:1] in "{[" else text
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("plan", [Generation(12, temperature=0.0), Generation(12), Generation(9, 0.7, top_p=0.8)])
def test_completions_are_those_of_a_rollout_bit_for_bit(subject: Any, client: Any, plan: Generation):
    rollout = subject.rollout(PROMPTS, group_size=2, plan=plan, seed=5, first=3)
    local = trimmed(rollout.replay.tokens, rollout.rollout_logp, rollout.replay.length)
    there = []
    for prompt in PROMPTS:
        for member in (3, 4):
            answer = client.completions.create(
                model=NAME,
                prompt=subject.encode(prompt.text, subject.stop),
                max_tokens=plan.max_new_tokens,
                temperature=plan.temperature,
                top_p=plan.top_p,
                seed=Key(5, prompt.id, member).number("tokens"),
                logprobs=1,
                extra_body={"return_token_ids": True},
            )
            choice = answer.choices[0]
            there.append((choice.token_ids, choice.logprobs.token_logprobs))
            assert choice.prompt_token_ids == subject.encode(prompt.text, subject.stop)
    assert there == local
    assert len({len(ids) for ids, _ in there}) > 1  # rows that end, and that their limit ends


def test_a_chat_goes_through_the_template_and_counts_its_tokens(subject: Any, client: Any):
    said = [{"role": "user", "content": [{"type": "text", "text": "7*8"}]}]
    answer = client.chat.completions.create(
        model=NAME, messages=said, temperature=0, max_tokens=6, logprobs=True, extra_body={"return_token_ids": True}
    )
    rollout = subject.rollout([PROMPTS[1]], plan=Generation(6, temperature=0.0), seed=0)
    choice = answer.choices[0]
    assert answer.prompt_token_ids == subject.encode("7*8", subject.stop)
    assert choice.message.content == rollout.samples.texts[0]
    assert [one.logprob for one in choice.logprobs.content] == rollout.rollout_logp[0].tolist()
    assert answer.usage.completion_tokens == len(choice.token_ids) == int(rollout.replay.length[0])


def test_further_completions_of_a_request_differ_and_repeat_by_the_seed(client: Any):
    def texts(**how: Any) -> list[str]:
        return [c.text for c in client.completions.create(model=NAME, prompt="12+3", n=4, max_tokens=8, **how).choices]

    first = texts(seed=3)
    assert len(set(first)) > 1 and first == texts(seed=3) != texts(seed=4)
    assert texts() != texts()


def test_stop_texts_end_a_completion_and_are_cut_off_unless_asked_for(subject: Any, client: Any):
    whole = client.completions.create(model=NAME, prompt="12+3", seed=8, max_tokens=12).choices[0]
    written = whole.text[2:4]
    how: dict[str, Any] = {"model": NAME, "prompt": "12+3", "seed": 8, "max_tokens": 12, "stop": [written]}
    cut = client.completions.create(**how, extra_body={"return_token_ids": True}).choices[0]
    kept = client.completions.create(**how, extra_body={"include_stop_str_in_output": True}).choices[0]
    assert cut.finish_reason == "stop" and cut.stop_reason == written
    assert cut.text + written == kept.text == whole.text[: whole.text.index(written) + len(written)]
    assert subject.tokenizer.decode(cut.token_ids) == kept.text


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/v1/completions", {"prompt": [1], "presence_penalty": 1}, 400, "presence_penalty"),
        ("/v1/completions", {"prompt": [1], "stream": True}, 400, "stream"),
        ("/v1/completions", {"prompt": [1], "max_tokens": 10**6}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": [10**6]}, 400, "token id 1000000"),
        ("/v1/completions", {"prompt": []}, 400, "no token"),
        ("/v1/completions", {"prompt": [1], "model": "other"}, 404, "'other'"),
        ("/v1/chat/completions", {"messages": [{"role": "wizard", "content": "?"}]}, 400, "only user"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "image"),
        ("/generate", {"text": "1", "input_ids": [1]}, 400, "exactly one"),
        ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "b"}, 403, "--updates"),
        ("/update_weights_from_disk", {"model_path": "b"}, 403, "--updates"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(client: Any, path: str, body: Any, status: int, told: str):
    got, answer = ask(str(client.base_url).removesuffix("/v1/"), path, **body)
    assert got == status and told in answer["error"]["message"]


def test_a_token_is_asked_for(subject: Any):
    with endpoint(subject, "a-token-for-tests-only") as (_, url):
        right = openai.OpenAI(base_url=f"{url}/v1", api_key="a-token-for-tests-only", max_retries=0)
        assert right.models.list().data[0].id == NAME
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="another", max_retries=0).models.list()


def test_adapters_are_loaded_by_name_and_every_answer_tells_which(tmp_path: Path):
    plan, prompt = Generation(8, temperature=0.0), PROMPTS[2]
    one, two = (saved(adapted(seed), tmp_path / str(seed)) for seed in (1, 2))
    subject = adapted()
    ids = subject.encode(prompt.text, subject.stop)

    def drawn(url: str, model: str) -> tuple[list[int], str]:
        how = {"temperature": 0, "max_tokens": 8, "return_token_ids": True, "logprobs": 0}
        answer = ask(url, "/v1/completions", model=model, prompt=ids, **how)[1]
        assert answer["model"] == model
        return answer["choices"][0]["logprobs"]["token_logprobs"], answer["weight_version"]

    def own(policy: Any) -> list[float]:
        rollout = policy.rollout([prompt], plan=plan, seed=0)
        return rollout.rollout_logp[0].tolist()

    expected = {"a": own(adapted(1)), "b": own(adapted(2)), NAME: own(adapted())}
    with endpoint(subject, updates=True) as (_, url):
        for name, folder in (("a", one), ("b", two)):
            assert ask(url, "/v1/load_lora_adapter", lora_name=name, lora_path=str(folder))[0] == 200
        for name in ("b", NAME, "a", "b", "a", NAME):
            assert drawn(url, name) == (expected[name], "default" if name == NAME else name)
        assert ask(url, "/v1/unload_lora_adapter", lora_name="a")[0] == 200
        assert ask(url, "/v1/completions", model="a", prompt=ids)[0] == 404
        status, answer = ask(url, "/v1/load_lora_adapter", lora_name="c", lora_path=str(tmp_path))
        assert status == 400 and "holds no LoRA" in answer["error"]["message"]
        (one / "adapter_config.json").write_text('{"lora_alpha": 99}')
        status, answer = ask(url, "/v1/load_lora_adapter", lora_name="c", lora_path=str(one))
        assert status == 400 and "lora_alpha is 99" in answer["error"]["message"]
        assert drawn(url, NAME) == (expected[NAME], "default")


def test_a_whole_model_is_taken_from_disk_with_its_version(tmp_path: Path):
    other = language_support.policy(language_support.model(9), batch_invariant=True)
    other.source.save_weights(tmp_path)
    rollout = other.rollout([PROMPTS[0]], plan=Generation(8, temperature=0.0), seed=0)
    ids = other.encode(PROMPTS[0].text, other.stop)
    how = {"max_new_tokens": 8, "temperature": 0}
    with endpoint(language_support.policy(), updates=True) as (_, url):
        first = ask(url, "/generate", input_ids=ids, sampling_params=how, return_logprob=True)[1]
        assert ask(url, "/update_weights_from_disk", model_path=str(tmp_path), weight_version="7")[1]["success"]
        then = ask(url, "/generate", input_ids=ids, sampling_params=how, return_logprob=True)[1]
        refused = ask(url, "/update_weights_from_disk", model_path=str(tmp_path / "none"))
    assert (first["meta_info"]["weight_version"], then["meta_info"]["weight_version"]) == ("default", "7")
    assert first["output_ids"] != then["output_ids"]
    assert [lp for lp, _, _ in then["meta_info"]["output_token_logprobs"]] == rollout.rollout_logp[0].tolist()
    assert refused[0] == 400 and "cannot be loaded" in refused[1]["error"]["message"]


CHAT = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }}{% endfor %}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments.a }}){% endfor %}"
    "{% endfor %}<assistant>"
)
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def test_tools_go_into_the_template_and_calls_come_back(monkeypatch: pytest.MonkeyPatch):
    subject = adapted()
    subject.tokenizer.chat_template = CHAT
    asked: list[list[int]] = []

    def said(text: str) -> Any:
        def complete(ids: Any, plan: Generation, **_: Any) -> Any:
            asked.append(list(ids))
            return [Completion([3], [-1.0], text, "stop", 3)], "v"

        return complete

    call = '<tool_call>{"name": "add", "arguments": {"a": 7}}</tool_call>'
    monkeypatch.setattr(subject.tokenizer, "decode", lambda *_, **__: call)
    with endpoint(subject) as (service, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def chat(messages: Any, **how: Any) -> Any:
            return client.chat.completions.create(model=NAME, messages=messages, **how).choices[0]

        service.complete = said(f"well {call}")
        first = chat([{"role": "user", "content": "7"}], tools=[ADD])
        assert (first.finish_reason, first.message.content) == ("tool_calls", "well")
        made = first.message.tool_calls[0]
        assert (made.function.name, json.loads(made.function.arguments)) == ("add", {"a": 7})
        history = [{"role": "user", "content": "7"}, first.message.model_dump(exclude_none=True)]
        chat([*history, {"role": "tool", "content": "8", "tool_call_id": made.id}], tools=[ADD])
        plain = chat([{"role": "user", "content": "7"}], tools=[ADD], tool_choice="none")
        assert plain.message.tool_calls is None and plain.finish_reason == "stop"
        shown = ["add<user>7<assistant>", "add<user>7<assistant>welladd(7)<tool>8<assistant>", "<user>7<assistant>"]
        assert asked == [subject.tokenizer(text, add_special_tokens=False)["input_ids"] for text in shown]
        subject.tokenizer.chat_template = CHAT.replace("tools", "tolls")
        with pytest.raises(openai.BadRequestError, match="does not tell of them"):
            chat([{"role": "user", "content": "7"}], tools=[ADD])
