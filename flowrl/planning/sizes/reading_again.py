"""Which language models read all of a row again with each of its tokens, by their class alone."""

import inspect
from functools import lru_cache

import transformers

from flowrl.known.places import config_place
from flowrl.policies.compiling import CACHES
from flowrl.recipe.calls import read_json
from flowrl.recipe.models import gguf_file


@lru_cache(maxsize=64)
def reads_again(model: str) -> bool:
    """Whether a model's forward takes no key-value cache; False where its class is not known here.

    Models that ask for their pictures with each token (policies/language/drawing/reading.py) show it only when they are
    run.
    """
    if gguf_file(model) is not None:
        return False
    named = read_json(config_place(model) / "config.json").get("architectures") or [""]
    network = getattr(transformers, str(named[0]), None)
    known = () if network is None else inspect.signature(network.forward).parameters
    return "input_ids" in known and not any(name in known for name in CACHES)
