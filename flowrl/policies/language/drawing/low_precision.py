"""A copy of a language model in another precision, which draws what the model itself is trained on.

It stands for an inference engine: adapters are merged into the weights, and what is then drawn is a little off the
policy that trains (objective.correction). Buffers, such as the frequencies of rotary positions, stay as they are.
"""

import copy
import warnings

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from flowrl.policies.errors import PolicyError
from flowrl.untyped import LanguageModel


@torch.no_grad()
def low_precision(model: LanguageModel, precision: str) -> LanguageModel:
    """The model as it is now, in `precision`: bfloat16, float16, or int8, of linear layers alone, whose weights have
    one scale each and whose inputs are rounded as they come (torch's dynamic quantisation).

    Raises PolicyError for int8 on another device than the CPU.
    """
    twin = merged(model)
    if precision == "int8":
        if model.device.type != "cpu":
            raise PolicyError(
                f"rollout.dtype: got int8, which runs on the CPU alone, not on {model.device}; set bfloat16 or float16"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it moves to another package
            return torch.ao.quantization.quantize_dynamic(twin.float(), {nn.Linear}, dtype=torch.qint8)
    for parameter in twin.parameters():
        parameter.data = parameter.data.to(getattr(torch, precision))
    return twin


def merged(model: LanguageModel) -> LanguageModel:
    """A frozen copy of the model with its adapters in its weights."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    twin = copy.deepcopy(model).requires_grad_(False).eval()
    for parameter, gradient in gradients:
        parameter.grad = gradient
    for name, module in list(twin.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(twin.get_submodule(parent), own, module.get_base_layer())
    return twin
