"""What a run ran on: versions and hardware, as JSON values."""

import os
import platform
import shlex
import sys
from importlib import metadata
from typing import Any

import torch

from flowrl import __version__

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy")


def machine_facts() -> dict[str, Any]:
    """The versions of flowrl and of the packages that results depend on, and the machine."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "flowrl": __version__,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processors": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
        },
        "command": shlex.join(["flowrl", *sys.argv[1:]]),
    }
