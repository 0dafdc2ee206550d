"""Models without weights: on the meta device to count, or hollow on the CPU to run for their shapes."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText


def meta_model(config: Any) -> nn.Module:
    """The model of a configuration without memory; an edge model's encoder without the pooling head it never uses."""
    config = copy.deepcopy(config)
    if config.model_type == "edgevlm" and hasattr(config.vision_config, "vision_use_head"):
        config.vision_config.vision_use_head = False
    with torch.device("meta"):
        model: nn.Module = AutoModelForImageTextToText.from_config(config)
    return model.eval()


def materialize(model: Any, make: Any) -> None:
    """Gives a meta model parameters made by `make(name, meta parameter)`, tied ones once, and its buffers.

    Buffers, such as rotary tables, get the values transformers gives them, in their own type.
    """
    made: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) not in made:
            made[id(parameter)] = nn.Parameter(make(name, parameter), requires_grad=False)
            # Tells transformers' initialisation, called for the buffers below, to leave it alone.
            made[id(parameter)]._is_hf_initialized = True  # type: ignore[attr-defined]
        owner, _, field = name.rpartition(".")
        setattr(model.get_submodule(owner), field, made[id(parameter)])
    for module in model.modules():
        module.__dict__.pop("_is_hf_initialized", None)
        for field, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, field, torch.empty_like(buffer, device="cpu"))
    model.initialize_weights()


def hollow_model(config: Any) -> Any:
    """A model on the CPU whose every weight is one shared number: its forward runs on hardly any memory."""
    model = meta_model(config)
    materialize(model, lambda _, parameter: torch.full((1,), 0.01).expand(parameter.shape))
    return model


class ShapesOnly(TorchDispatchMode):
    """Inside it, matrix products and attention give zeros of the right shape instead of being computed.

    For counting what a full-size model would do: every operation is still dispatched, with its real shapes.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answers the costly operations, runs all others."""
        aten = torch.ops.aten
        if func is aten.mm.default:
            return args[0].new_zeros(args[0].shape[0], args[1].shape[1])
        if func is aten.addmm.default:
            return args[1].new_zeros(args[1].shape[0], args[2].shape[1])
        if func is aten._scaled_dot_product_flash_attention_for_cpu.default:
            return torch.zeros_like(args[0]), args[0].new_zeros(args[0].shape[:3])
        return func(*args, **(kwargs or {}))
