"""Environments of verifiers (github.com/PrimeIntellect-ai/verifiers) as agents: they run their own loop.

The harness of an environment asks the policy's endpoint, whose calls are recorded and become rows; the rewards that its
tasks give are the outcome of the sample.
"""

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from flowrl.contracts import Prompt
from flowrl.environments.tools.parts.packages import require

KEY = "FLOWRL_NO_KEY"  # the variable that verifiers reads a key from: the endpoint asks for none


class verifiers:
    """Plays tasks of a taskset of verifiers; their outcome is `reward`, the weighted sum, and each by its own name."""

    def __init__(self, *, taskset: str, env: Mapping[str, Any] | None = None, task: str = "task"):
        """Raises Unavailable without the package, and whatever verifiers raises for settings that it refuses.

        taskset: its id. env: the other keys of verifiers' own `env` section, such as {agent: {harness: {id: "null"},
        runtime: {type: subprocess}}}. task: the column of a prompt that has the number of its task, from 0.
        """
        self.package: Any = require("the agent verifiers", "verifiers.v1", "verifiers")
        loaders: Any = require("the agent verifiers", "verifiers.v1.utils.loaders", "verifiers")
        given = dict(env or {})
        self.config = loaders.resolve_env_config(given | {"taskset": given.get("taskset", {}) | {"id": taskset}})
        self.load, self.taskset, self.task = loaders.load_environment, taskset, task
        os.environ.setdefault(KEY, "none")

    def __call__(self, base_url: str, prompt: Prompt) -> dict[str, float]:
        """The numbers of one task. Raises RuntimeError where its episode failed, ValueError for no such task."""
        number = prompt.meta.get(self.task)
        if not isinstance(number, int) or isinstance(number, bool):
            problem = f"prompt {prompt.id!r}: {self.task}={number!r}; accepted is the number of a task"
            raise ValueError(f"{problem} of {self.taskset!r}")
        client = self.package.EvalClientConfig(base_url=base_url, api_key_var=KEY)
        episode = asyncio.run(self._played(number, self.package.ModelContext(model="policy", client=client)))
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        if not episode.ok or errors:
            raise RuntimeError(f"the episode failed: {'; '.join(str(one.message) for one in errors) or 'not ok'}")
        numbers: dict[str, float] = {}
        for trace in episode.traces:
            found = {name: one.score for name, one in trace.rewards.items() if one is not None}
            found |= {name: one for name, one in trace.metrics.items() if one is not None}
            numbers |= {name: float(one) for name, one in found.items() if isinstance(one, int | float)}
            numbers["reward"] = numbers.get("reward", 0.0) + float(trace.reward)
        return numbers

    async def _played(self, number: int, context: Any) -> Any:
        """The episode of one task."""
        environment = self.load(self.config)
        chosen = next((one for one in environment.taskset if one.data.idx == number), None)
        if chosen is None:
            raise ValueError(f"the taskset {self.taskset!r} has no task {number}")
        async with environment.serving():
            return await environment.run_episode(chosen, context)
