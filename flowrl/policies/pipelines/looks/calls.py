"""Looks at noise levels by calls with other arguments than a rollout's, such as guidance 1 where rollouts are guided.

Guidance determines how often a step calls the denoiser, and with how many rows. What the probe recorded of one call is
therefore nothing that the other could go by: calls with other arguments are passes of their own, with their own probe.
"""

from collections.abc import Sequence
from dataclasses import replace

from flowrl.contracts import Prompt
from flowrl.policies.pipelines.calls.passes import PipelinePasses
from flowrl.untyped import JSON, Nest


class LookPasses(PipelinePasses):
    """Passes that call the pipeline as others do, but for some arguments, those of the prompts themselves included."""

    def __init__(self, rollouts: PipelinePasses, arguments: dict[str, JSON]):
        def call(prompts: Sequence[Prompt]) -> dict[str, Nest]:
            return (rollouts.call(prompts) if callable(rollouts.call) else rollouts.call) | arguments

        super().__init__(
            rollouts.source,
            rollouts.modules,
            rollouts.dynamics,
            call=call,
            device=rollouts.device,
            max_rows=rollouts.max_rows,
            offload=rollouts.offload,
            guidance_gradient=rollouts.guidance_gradient,
            autoencoding=rollouts.autoencoding,
        )
        self._own = arguments

    def arguments(self, prompts: Sequence[Prompt]) -> dict[str, Nest]:
        """See `PipelinePasses`."""
        plain = [replace(p, call={k: v for k, v in p.call.items() if k not in self._own}) for p in prompts]
        return super().arguments(plain)
