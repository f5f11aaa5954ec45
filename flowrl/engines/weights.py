"""A policy's weights on their way to the server that draws: which they are, and how they get there."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import torch

from flowrl.engines.client import Connection, EngineError, UnknownWeightsError
from flowrl.policies import adapters
from flowrl.policies.language.low_precision import merged
from flowrl.policies.language.policy import LanguagePolicy


def version_of(policy: LanguagePolicy) -> str:
    """A name for the trained weights as they are now: the same for the same bits, in any process."""
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in sorted(adapters.trainable_by_name(policy.modules).items()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"flowrl-{digest.hexdigest()}"


class Courier:
    """Brings weights to a server, each version once; folder: where both of them see files (None: a temporary one)."""

    def __init__(self, to: Connection, folder: str | None):
        self.to = to
        self._temporary = None if folder is not None else tempfile.TemporaryDirectory(prefix="flowrl-weights-")
        self.folder = Path(folder).expanduser().resolve() if self._temporary is None else Path(self._temporary.name)
        self.at: str | None = None  # the version that the server draws with

    def bring(self, policy: LanguagePolicy, *, again: bool = False) -> str:
        """The version of the policy's weights, which the server has when this returns. again: it may have lost them.

        Raises EngineError where the server does not take them.
        """
        version = version_of(policy)
        if version == self.at and not again:
            return version
        place, before = self.folder / version, self.at
        lora = self.to.keys.use == "vllm"
        (_write_adapters if lora else _write_whole)(policy, place)
        try:
            (self._load_adapters if lora else self._load_whole)(version, place)
        except UnknownWeightsError as error:
            raise EngineError(
                f"{error}; it takes no weights: start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True "
                "and --enable-lora, SGLang as it is, `flowrl serve-policy` with --updates"
            ) from None
        self.at = version
        if before not in (None, version):
            if lora:
                self.to.ask("/v1/unload_lora_adapter", {"lora_name": before})
            shutil.rmtree(self.folder / str(before), ignore_errors=True)
        return version

    def _load_adapters(self, version: str, place: Path) -> None:
        there = self.to.ask("/v1/models", use=lambda answer: [one["id"] for one in answer["data"]])
        if version not in there:
            self.to.ask("/v1/load_lora_adapter", {"lora_name": version, "lora_path": str(place)})

    def _load_whole(self, version: str, place: Path) -> None:
        answer = self.to.ask("/update_weights_from_disk", {"model_path": str(place), "weight_version": version})
        if not answer["success"]:
            raise EngineError(f"rollout.engine: {self.to.keys.url} does not take the weights: {answer['message']}")


def _write_adapters(policy: LanguagePolicy, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    adapters.save_peft(policy.model, place)


def _write_whole(policy: LanguagePolicy, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    model = policy.model
    if getattr(model, "_hf_peft_config_loaded", False):
        model = merged(model)
        model._hf_peft_config_loaded = False  # it has none any more, and saves itself as a whole
    model.save_pretrained(place)
    policy.tokenizer.save_pretrained(place)
