"""Short names of long contents: of tensors, and of models."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_SAMPLED = 1024


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """64 hex digits of every tensor's name, type, shape and bytes, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_of(**modules: nn.Module) -> str:
    """64 hex digits of the modules under their names: of each parameter its name, shape, type and 1,024 values.

    A sample, spread over the parameter, because reading all of a 72B teacher would take minutes.
    """
    return tensors_digest(
        {
            f"{role} {name} {list(parameter.shape)}": sample_of(parameter)
            for role, module in modules.items()
            for name, parameter in module.named_parameters()
        }
    )


def sample_of(values: Tensor) -> Tensor:
    """1,024 values of a tensor at equal distances; all, where there are fewer."""
    flat = values.detach().flatten()
    # Rounded up, so that the sample reaches the last part of a tensor of less than twice its size too.
    return flat[:: max(1, -(-flat.numel() // _SAMPLED))]
