"""flowrl: reinforcement learning for image, video and sound generators and for language models.

The names of the loop can be taken from here, as `examples/loop.py` does. They are imported when they are first used, so
that `import flowrl` and the command load nothing heavy.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# name here -> (the module that defines it, its name there)
_LAZY = {
    "Prompt": ("flowrl.contracts", "Prompt"),
    "Samples": ("flowrl.contracts", "Samples"),
    "Rollout": ("flowrl.contracts", "Rollout"),
    "load_pipeline": ("flowrl.policies.loading", "load_pipeline"),
    "load_language": ("flowrl.policies.loading", "load_language"),
    "denoisers": ("flowrl.policies.adapters", "denoisers"),
    "add_lora": ("flowrl.policies.adapters", "add_lora"),
    "save_adapters": ("flowrl.policies.adapters", "save"),
    "Dynamics": ("flowrl.policies.pipelines.steps.dynamics", "Dynamics"),
    "PipelinePolicy": ("flowrl.policies.pipelines.policy", "PipelinePolicy"),
    "LanguagePolicy": ("flowrl.policies.language.policy", "LanguagePolicy"),
    "Plan": ("samplers.plan", "Plan"),
    "load_prompts": ("flowrl.reading.prompts", "load"),
    "Cursor": ("flowrl.reading.cursor", "Cursor"),
    "advantages": ("flowrl.core.advantages.combined", "advantages"),
    "ClippedObjective": ("flowrl.core.objectives.grpo", "ClippedObjective"),
    "Learner": ("flowrl.core.learning.learner", "Learner"),
    "Settings": ("flowrl.core.update", "Settings"),
    "iterate": ("flowrl.core.iterate", "iterate"),
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'flowrl' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
