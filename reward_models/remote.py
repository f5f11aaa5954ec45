"""Rewards on another machine: samples go to `flowrl serve-rewards`, scores come back.

A failure never becomes a score. What a server could not score is NaN; if no server answers, or none of the samples
could be scored, the call raises. `reward_models/parts/remote/wire.py` defines the protocol.
"""

import json
import os
import uuid
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from flowrl.contracts import Samples
from flowrl.core.batches import whole_groups
from flowrl.untyped import JSON
from reward_models.parts.inputs import frames, is_unscorable
from reward_models.parts.judge.servers import (
    RewardServer,
    ScoringFailedError,
    ServerBusyError,
    ServerRefusedError,
    Servers,
    ServerUnavailableError,
    exchange,
)
from reward_models.parts.remote import protocol, wire

FORMS = ("png", "safetensors")


class remote:
    """One reward, served by one or several `flowrl serve-rewards` that share the samples."""

    def __init__(
        self,
        *,
        url: str | Sequence[str],
        name: str | None = None,
        token_env: str | None = None,
        timeout: float = 120.0,
        retries: int = 6,
        patience: float = 600.0,
        concurrency: int = 4,
        batch: int = 16,
        format: str = "png",
    ):
        """Contacts the servers. One that is down is tried again later, as long as another is up.

        url: where they are. name: which of their rewards (null: the only one). token_env: the environment variable
        that holds their token. timeout: seconds that a request may take. retries: how often a failed request is sent
        again, patience: for how many seconds in all it waits for busy servers. concurrency: requests at once. batch:
        samples per request, at most; fewer if a server takes fewer; groups stay whole if the reward needs them.
        format: png is lossless for 8-bit pictures, which these become; safetensors sends the floats as they are.
        """
        urls = [url] if isinstance(url, str) else list(url)
        limits = {"timeout": timeout, "patience": patience, "concurrency": concurrency, "batch": batch}
        if low := next((key for key, value in limits.items() if value <= 0), None):
            raise ValueError(f"remote: {low}={limits[low]}: accepted is a number above 0")
        if not urls or retries < 0 or format not in FORMS:
            raise ValueError(
                f"remote: url={urls}, retries={retries}, format={format!r}: accepted is at least one url, "
                f"retries from 0 and format {' or '.join(FORMS)}"
            )
        self.name, self.timeout, self.batch, self.format = name, timeout, batch, format
        self.concurrency, self.headers = concurrency, _headers(token_env)
        self.served: dict[str, JSON] = {}
        self.limits: dict[str, int] = {}
        self.groupwise = False
        self._identities: dict[str, str] = {}
        self.servers = Servers(urls, retries=retries, patience=patience)
        self._greet_all()

    @property
    def identity(self) -> list[str]:
        """Identifies the code and files of the reward on the servers that have answered: for a cache."""
        return sorted(set(self._identities.values()))

    def __call__(self, samples: Samples) -> Tensor:
        """Scores, float32 [B]; NaN where a sample could not be scored.

        Raises ValueError for what a server refuses, RuntimeError if none answers or all samples failed.
        """
        scores = torch.full((len(samples),), torch.nan)
        sent = torch.ones(len(samples), dtype=torch.bool)
        if samples.texts is None and len(samples):
            pixels = frames("remote", samples)
            if self.format == "png":  # which holds no NaN
                sent = ~is_unscorable(pixels).cpu()
        outcomes = self._outcomes(samples, self._parts(samples, sent.nonzero().flatten().tolist()))
        failed = {i: one.reason for i, one in outcomes.items() if one.status == "error"}
        what = f"remote reward {self.name!r} could not score {len(failed)} of {len(outcomes)} samples"
        if failed and len(failed) == len(outcomes):
            raise RuntimeError(f"{what}: {next(iter(failed.values()))}")
        if failed:
            warnings.warn(f"{what}: {next(iter(failed.values()))}", stacklevel=2)
        for i, one in outcomes.items():
            score = one.scores[str(self.name)]
            if score is not None:
                scores[i] = score
        return scores

    def _outcomes(self, samples: Samples, parts: list[list[int]]) -> dict[int, wire.ItemOutcome]:
        """The outcome of each position. The first error ends the call."""
        if not parts:
            return {}
        with ThreadPoolExecutor(min(self.concurrency, len(parts)), "remote") as threads:
            asked = [threads.submit(self._score, samples, part) for part in parts]
            outcomes = {}
            try:
                for part, ask in zip(parts, asked, strict=True):
                    outcomes |= dict(zip(part, ask.result(), strict=True))
                return outcomes
            finally:
                for ask in asked:
                    ask.cancel()

    def _score(self, samples: Samples, part: list[int]) -> list[wire.ItemOutcome]:
        """The outcomes of the samples at these positions, in one request."""
        name = str(self.name)
        kind, body = wire.encode(samples[part], self.format, [name])
        # the same id in every attempt: a server that has already scored it repeats its answer
        headers = self.headers | {"Content-Type": kind, protocol.REQUEST_ID: uuid.uuid4().hex}

        def once(server: RewardServer) -> list[wire.ItemOutcome]:
            self._greet(server)
            data = self._exchange(server, "POST", protocol.SCORE, body, headers)
            try:
                return wire.scores(data, len(part), name)
            except ValueError as error:
                raise ServerUnavailableError(f"{server.url} gave {error}") from error

        try:
            return self.servers.ask(once)
        except ScoringFailedError as error:
            return [wire.ItemOutcome(status="error", scores={name: None}, reason=str(error)) for _ in part]

    def _parts(self, samples: Samples, positions: list[int]) -> list[list[int]]:
        """Positions request by request: as many as fit, in whole groups if the reward compares within them."""
        most = self._most(samples) if positions else 1
        if not self.groupwise:
            return [positions[i : i + most] for i in range(0, len(positions), most)]
        parts = whole_groups(positions, samples.group.tolist(), most)
        if large := next((len(part) for part in parts if len(part) > most), None):
            raise ValueError(
                f"remote: reward {self.name!r} compares a group of {large} samples, but a request holds "
                f"{most}; raise batch here, or max_items, max_pixels and max_bytes of the server"
            )
        return parts

    def _most(self, samples: Samples) -> int:
        """How many of these samples fit into a request: 1 or more, or ValueError."""
        pixels = samples.images if samples.images is not None else samples.video
        most = min(self.batch, self.limits["max_items"])
        if pixels is None:
            return most
        size, pictures = pixels[0].numel() // 3, pixels[0].shape[0] if pixels.ndim == 5 else 1
        # bytes, at most: the prompt, what surrounds a picture, three floats or what noise takes as PNG in base64
        each = 4096 + 256 * pictures + (13 if self.format == "safetensors" else 6) * size
        most = min(most, self.limits["max_pixels"] // size, self.limits["max_bytes"] // each)
        if most < 1:
            raise ValueError(f"remote: a sample of {size} pixels is more than the server takes: {self.limits}")
        return most

    def _exchange(self, server: RewardServer, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        """The body of a successful answer; raises the error that any other status stands for."""
        status, after, data = exchange(server, method, path, body, headers, self.timeout)
        if status == 200:
            return data
        said = f"{server.url} answers {status}: {_reason(data)}"
        if status in (429, 503):
            raise ServerBusyError(said, 1.0 if after is None else after)
        if status in (500, 504):
            raise ScoringFailedError(said)
        if 400 <= status < 500 and status != 408:
            hint = "; set token_env to the variable that holds the server's token" if status in (401, 403) else ""
            raise ServerRefusedError(f"remote: {said}{hint}")
        raise ServerUnavailableError(said)

    def _greet_all(self) -> None:
        """Greets every server. Raises ValueError if none answers, or if one does not fit the recipe."""
        down = []
        for server in self.servers.all:
            try:
                self._greet(server)
            except (ServerUnavailableError, ServerBusyError, ScoringFailedError) as error:
                down.append(str(error))
        if len(down) == len(self.servers.all):
            raise ValueError(f"remote: {'; '.join(down)}; start it with `flowrl serve-rewards CONFIG`, or correct url")

    def _greet(self, server: RewardServer) -> None:
        """Learns what a server offers, once. Raises ServerRefusedError if it is not what the recipe wants."""
        with server.greeting:
            if server.greeted:
                return
            data = self._exchange(server, "GET", protocol.REWARDS, b"", self.headers)
            try:
                told = json.loads(data)
                version, rewards = int(told["version"]), {str(k): dict(v) for k, v in told["rewards"].items()}
                limits = {key: int(told["limits"][key]) for key in ("max_items", "max_pixels", "max_bytes")}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ServerRefusedError(
                    f"remote: {server.url} is not a reward server ({type(error).__name__})"
                ) from None
            if version != protocol.VERSION:
                raise ServerRefusedError(
                    f"remote: {server.url} speaks version {version}, this client another; update one"
                )
            if self.name is None and len(rewards) != 1:
                raise ServerRefusedError(
                    f"remote: {server.url} has several rewards, set name to one of {', '.join(rewards)}"
                )
            name = self.name or next(iter(rewards))
            if name not in rewards:
                raise ServerRefusedError(f"remote: {server.url} has no reward {name!r}; accepted: {', '.join(rewards)}")
            self._identities[server.url] = str(rewards[name].pop("identity", ""))
            if self.served and self.served != rewards[name]:
                raise ServerRefusedError(
                    f"remote: {name!r} is {self.served} elsewhere and {rewards[name]} at {server.url}"
                )
            self.name, self.served = name, rewards[name]
            self.groupwise = bool(self.served.get("groupwise"))
            self.limits = {key: min(value, self.limits.get(key, value)) for key, value in limits.items()}
            server.greeted = True


def _headers(token_env: str | None) -> dict[str, str]:
    """The headers of every request. Raises ValueError if the variable that should hold the token does not."""
    headers = {"Accept": "application/json"}
    if token_env is None:
        return headers
    token = os.environ.get(token_env, "")
    if not token or not token.isascii() or not token.isprintable():
        raise ValueError(f"remote: token_env={token_env!r}: the environment variable holds no token; export it")
    return headers | {"Authorization": f"Bearer {token}"}


def _reason(data: bytes) -> str:
    """The error in an answer, or the answer's beginning."""
    try:
        return str(json.loads(data)["error"])[:300]
    except (ValueError, KeyError, TypeError, RecursionError):
        return " ".join(data[:100].decode("utf-8", "replace").split()) or "nothing"
