"""A policy that completes prompts for others, and takes other weights while it does.

Unless batches are asked for (batching.py), every completion is drawn alone, so that an answer is the same bits whatever
else is asked at the time: slower than a batch, by as much as batches are faster. Log-probs are those of the policy,
under softmax(logits / temperature) before any cut (samplers/tokens.py).
"""

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor

from flowrl.engines.batching import Batches, Request, draw_together
from flowrl.names import UserError
from flowrl.policies import adapters
from flowrl.policies.language.drawing.decoding import decode_alone
from flowrl.policies.language.drawing.stopping import Stop
from flowrl.policies.language.media.inputs import EMPTY, Inputs
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.loading import load_language
from flowrl.policies.noise import Key
from flowrl.untyped import LanguageModel
from samplers.tokens import Generation

FIRST = "default"  # the version of the weights that a server begins with, as SGLang names it


class RefusedError(ValueError):
    """A request that cannot be answered as it is: an HTTP status, and the reason in one line."""

    def __init__(self, status: int, reason: str):
        self.status = status
        super().__init__(reason)


@dataclass(frozen=True)
class Completion:
    """One completion: its token ids with the one that ended it, their log-probs, its text, why it ended.

    reason: stop or length. stopped_by: the stop text, or the id of the token; None at the limit.
    """

    ids: list[int]
    logp: list[float]
    text: str
    reason: str
    stopped_by: str | int | None


class PolicyService:
    """Completions of a policy. name: what the model is called; plan: how tokens are drawn where a request does not say.

    updates: whether requests may bring other weights. batch: how many completions that are asked for at the same time
    are drawn together; with 1, or a policy that is batch_invariant, each is drawn alone, the same bits at any load.
    """

    def __init__(self, policy: LanguagePolicy, name: str, plan: Generation, *, updates: bool = False, batch: int = 1):
        self.policy, self.name, self.plan, self.updates = policy, name, plan, updates
        self.together = batch > 1 and not policy.batch_invariant
        self.model, self.version = policy.model, FIRST
        self.lock = threading.Lock()
        self.batches = Batches(batch if self.together else 1, self.lock, self._draw)
        self.adapted = bool(getattr(policy.model, "_hf_peft_config_loaded", False))
        self._adapters: dict[str, dict[str, Tensor]] = {}
        self._loaded = name

    @property
    def names(self) -> list[str]:
        """The models that may be asked: the policy as it was loaded, and adapters by name."""
        return [self.name, *self._adapters]

    @property
    def positions(self) -> int | None:
        """How many tokens a prompt and its completion may have together; None: no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def room(self, ids: Sequence[int], wanted: int | None) -> int:
        """How many tokens may be drawn after these. Raises RefusedError where there are more than the model takes."""
        if not ids:
            raise RefusedError(400, "prompt: got no token; give at least one")
        size = self.model.config.get_text_config().vocab_size
        if (bad := next((i for i in ids if not 0 <= i < size), None)) is not None:
            raise RefusedError(400, f"prompt: got the token id {bad}; accepted: 0 to {size - 1}")
        limit = self.positions
        number = self.plan.max_new_tokens if wanted is None else wanted
        if limit is not None and wanted is None:
            number = min(number, limit - len(ids))
        if number < 1 or (limit is not None and len(ids) + number > limit):
            raise RefusedError(
                400, f"max_tokens: got {number} after a prompt of {len(ids)} tokens; the model takes {limit} in all"
            )
        return number

    def complete(
        self,
        ids: Sequence[int],
        plan: Generation,
        *,
        model: str | None = None,
        number: int = 1,
        seed: int | None = None,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        keep_stop: bool = False,
        media: Inputs | None = None,
    ) -> tuple[list[Completion], str]:
        """(so many completions of these ids, the version of the weights that drew them).

        seed: names the noise; the first completion takes that of a generator with this seed, as a rollout's row does,
        and further ones other noise. None: every request draws anew. keep_stop: texts end with the stop text. media:
        what stands among the ids.
        Raises RefusedError for a model that is not there.
        """
        ends = Stop(sorted({*self.policy.stop, *stop_ids}), (*self.policy.stop.texts, *stop), self.policy.tokenizer)
        uniforms = torch.stack([_uniforms(seed, i, plan.max_new_tokens) for i in range(number)])
        made = self.batches.answer(Request(ids, uniforms, plan, ends, model or self.name, media))
        return [self._completion(own, logp, ends, keep_stop) for own, logp in made.rows], made.version

    @torch.no_grad()
    def _draw(self, requests: Sequence[Request]) -> None:
        """Fills in the answers of requests that fit together; where nothing is to be drawn together, it is one."""
        version = self._use(requests[0].model)
        seeing, pad, barred = self.policy.processor is not None, self.policy.pad, self.policy.barred
        if self.together:
            draw_together(self.model, requests, pad=pad, barred=barred, seeing=seeing)
        for one in requests:
            one.version = version
            if not self.together:
                inputs, number = [one.media or EMPTY] if seeing else None, len(one.uniforms)
                options = {"stop": one.stop, "pad": pad, "barred": barred, "inputs": inputs, "group": number}
                tokens, logp, length = decode_alone(self.model, [list(one.ids)], one.uniforms, one.plan, **options)
                rows = zip(tokens, logp, length.tolist(), strict=True)
                one.rows = [(t[:n].tolist(), lp[:n].tolist()) for t, lp, n in rows]

    def _completion(self, ids: list[int], logp: list[float], ends: Stop, keep_stop: bool) -> Completion:
        by_token = ids[-1] in ends
        text = self.policy.tokenizer.decode(
            ids[:-1] if by_token else ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if by_token:
            return Completion(ids, logp, text, "stop", ids[-1])
        if not ends.written(ids):
            return Completion(ids, logp, text, "length", None)
        at, written = min((at, written) for written in ends.texts if (at := text.rfind(written)) >= 0)
        return Completion(ids, logp, text[: at + len(written) if keep_stop else at], "stop", written)

    # ------------------------------------------------------------------ weights

    def load_adapter(self, name: str, folder: str) -> None:
        """Takes the adapters in a folder of peft under a name, in the place of those that had it.

        Raises RefusedError where the served model has no adapters, or they do not fit.
        """
        self._refuse_updates()
        if not self.adapted or name == self.name:
            reason = f"{name!r} is the model itself" if self.adapted else "the served model has no adapters"
            raise RefusedError(400, f"lora_name: {reason}; serve a recipe with `lora`, and name adapters otherwise")
        with self.lock:
            kept = self._state()
            try:
                _refuse_other_scale(self.policy.model, Path(folder))
                adapters.go_on_from(self.policy.modules, Path(folder))
                self._adapters[name] = self._state()
            except (UserError, SafetensorError, OSError, ValueError, RuntimeError) as error:
                raise RefusedError(400, f"lora_path: {' '.join(str(error).split())[:300]}") from error
            finally:
                self._set(kept)

    def unload_adapter(self, name: str) -> None:
        """Forgets adapters. Raises RefusedError for a name that is not there."""
        self._refuse_updates()
        with self.lock:
            if self._adapters.pop(name, None) is None:
                raise RefusedError(404, f"lora_name: got {name!r}; accepted: {', '.join(self._adapters) or 'none'}")

    def load_weights(self, folder: str, version: str | None) -> None:
        """Takes the whole model in a folder of transformers. Raises RefusedError where it cannot, or does not fit."""
        self._refuse_updates()
        try:
            model, tokenizer = load_language(folder, self.model.dtype)
        except UserError as error:
            raise RefusedError(400, f"model_path: {error}") from error
        if tokenizer.get_vocab() != self.policy.tokenizer.get_vocab():
            raise RefusedError(400, f"model_path: the model in {folder} has another vocabulary than the served one")
        with self.lock:
            if self.adapted:  # what takes its place has no adapters
                self.model, self.adapted = model.to(self.policy.device), False
                self._adapters.clear()
                self._loaded = self.name
            else:  # where the weights lie in memory changes the last bit of a product: they stay where they were
                try:
                    self.model.load_state_dict(model.state_dict())
                except RuntimeError as error:
                    raise RefusedError(400, f"model_path: {' '.join(str(error).split())[:300]}") from error
            self.version = version or FIRST

    def _refuse_updates(self) -> None:
        if not self.updates:
            raise RefusedError(403, "weights are not taken from requests; start the server with --updates")

    def _use(self, name: str) -> str:
        """Makes the model the one of that name; returns the version of its weights."""
        if name not in self.names:
            raise RefusedError(404, f"model: got {name!r}; accepted: {', '.join(self.names)}")
        if name != self._loaded:
            if self._loaded == self.name:
                self._base = self._state()
            self._set(self._base if name == self.name else self._adapters[name])
            self._loaded = name
        return self.version if name == self.name else name

    def _state(self) -> dict[str, Tensor]:
        state = get_peft_model_state_dict(self.policy.model, adapter_name=adapters.ADAPTER)
        return {key: value.detach().clone() for key, value in state.items()}

    def _set(self, state: dict[str, Tensor]) -> None:
        set_peft_model_state_dict(self.policy.model, dict(state), adapter_name=adapters.ADAPTER)


def plan_of(given: Any, plan: Generation, number: int) -> Generation:
    """How a request's completions are drawn: its own values (of protocol.Sampling), else those of `plan`."""
    values = {
        name: value
        for name in ("temperature", "top_p", "min_p", "repetition_penalty")
        if (value := getattr(given, name)) is not None
    }
    if given.top_k is not None:
        values["top_k"] = given.top_k if given.top_k > 0 else None  # -1 and 0: all tokens
    return replace(plan, max_new_tokens=number, force=None, precision=None, **values)


def _refuse_other_scale(model: LanguageModel, folder: Path) -> None:
    """Raises ValueError for adapters that count more or less than the model's, which their weights do not show."""
    file, own = folder / "adapter_config.json", model.peft_config[adapters.ADAPTER]
    if not file.is_file():
        return
    given = json.loads(file.read_text(encoding="utf-8"))
    for name in ("lora_alpha", "use_rslora", "use_dora"):
        if name in given and given[name] != getattr(own, name):
            raise ValueError(f"{file}: {name} is {given[name]}, and {getattr(own, name)} of the served model")


def _uniforms(seed: int | None, index: int, number: int) -> Tensor:
    """Numbers of [0, 1), float64 [number], that draw a request's completion `index`; see noise.token_uniforms."""
    if seed is None:
        seed, index = int.from_bytes(os.urandom(8), "big") >> 1, 0
    name = seed if index == 0 else Key(seed, "completion", index).number("tokens")
    return torch.rand(number, generator=torch.Generator().manual_seed(name), dtype=torch.float64)
