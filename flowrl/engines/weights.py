"""A policy's weights on their way to the servers that draw: which they are, and how they get there.

Over several ranks the first one brings them while the others wait; each of these holds what it is told to have there
against its own weights.
"""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from flowrl.contracts import ALONE, Ranks
from flowrl.core.learning.shards import local
from flowrl.engines.client import Connection, EngineError, UnknownWeightsError
from flowrl.engines.sharding import ShardedRanks
from flowrl.policies import adapters
from flowrl.policies.language.drawing.low_precision import merged
from flowrl.policies.language.policy import LanguagePolicy


def version_of(policy: LanguagePolicy, ranks: Ranks = ALONE) -> str:
    """A name for the trained weights as they are now: the same for the same bits, in any process; of parts, for the
    same parts. All ranks call it.

    Raises EngineError where ranks that should hold the same weights do not.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in sorted(adapters.trainable_by_name(policy.modules).items()):
        digest.update(name.encode())
        digest.update(local(parameter).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    told = ranks.gather(digest.hexdigest())
    if isinstance(ranks, ShardedRanks):
        return f"flowrl-{hashlib.blake2b(' '.join(told).encode(), digest_size=8).hexdigest()}"
    if other := next((rank for rank, one in enumerate(told) if one != told[0]), 0):
        raise EngineError(
            f"rollout.engine: rank {other} holds other weights than rank 0, so that a server cannot draw for both; go "
            "on from the last checkpoint with --resume, on devices of one kind"
        )
    return f"flowrl-{told[0]}"


class Courier:
    """Brings weights to servers, each version once; folder: where all of them see files (None: a temporary one)."""

    def __init__(self, to: Sequence[Connection], folder: str | None):
        self.to = to
        self.at: str | None = None  # the version that the servers draw with
        self._folder, self._place = folder, ""  # of all versions, and of that one

    def bring(self, policy: LanguagePolicy, ranks: Ranks = ALONE) -> str:
        """The version of the policy's weights, which the servers have when this returns; all ranks call it.

        Raises EngineError where a server does not take them.
        """
        if isinstance(ranks, ShardedRanks):
            ranks.rounds.rest()  # no weights are gathered behind this
        version = version_of(policy, ranks)
        if version == self.at:
            return version
        parts = ranks.whole(policy.modules) if isinstance(ranks, ShardedRanks) else contextlib.nullcontext()
        with torch.no_grad(), parts:
            if ranks.rank == 0:
                self._place = str(self._written(policy, version))
        if ranks.rank == 0:
            for to in self.to:
                self.load(to, version)
            self._forget(self.at)
        self.at, self._place = ranks.gather((version, self._place))[0]
        return version

    def load(self, to: Connection, version: str) -> None:
        """Has a server take the weights of this version, which are written already.

        Raises EngineError where it does not.
        """
        lora = to.keys.use == "vllm"
        try:
            (_load_adapters if lora else _load_whole)(to, version, self._place)
        except UnknownWeightsError as error:
            raise EngineError(
                f"{error}; it takes no weights: start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True "
                "and --enable-lora, SGLang as it is, `flowrl serve-policy` with --updates"
            ) from None

    def _written(self, policy: LanguagePolicy, version: str) -> Path:
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="flowrl-weights-")
            self._folder = self._temporary.name
        place = Path(self._folder).expanduser().resolve() / version
        place.mkdir(parents=True, exist_ok=True)
        if self.to[0].keys.use == "vllm":
            adapters.save_peft(policy.model, place)
        else:
            _write_whole(policy, place)
        return place

    def _forget(self, before: str | None) -> None:
        """Has the servers, and the folder, lose an earlier version."""
        if before is None:
            return
        for to in self.to:
            if to.keys.use == "vllm":
                with contextlib.suppress(UnknownWeightsError):  # one that was started anew has lost it already
                    to.ask("/v1/unload_lora_adapter", {"lora_name": before})
        shutil.rmtree(Path(self._place).parent / before, ignore_errors=True)


def _load_adapters(to: Connection, version: str, place: str) -> None:
    def there() -> bool:
        return version in to.ask("/v1/models", use=lambda answer: [one["id"] for one in answer["data"]])

    if there():
        return
    try:
        to.ask("/v1/load_lora_adapter", {"lora_name": version, "lora_path": place})
    except EngineError:
        if not there():  # another rank may have brought them meanwhile
            raise


def _load_whole(to: Connection, version: str, place: str) -> None:
    answer = to.ask("/update_weights_from_disk", {"model_path": place, "weight_version": version})
    if not answer["success"]:
        raise EngineError(f"rollout.engine: {to.url} does not take the weights: {answer['message']}")


def _write_whole(policy: LanguagePolicy, place: Path) -> None:
    model = policy.model
    if getattr(model, "_hf_peft_config_loaded", False):
        model = merged(model)
        model._hf_peft_config_loaded = False  # it has none any more, and saves itself as a whole
    model.save_pretrained(place)
    policy.tokenizer.save_pretrained(place)
