"""In which type models compute."""

from contextlib import AbstractContextManager, nullcontext

import torch

from verbdistill.config import DistillConfig


def forward_precision(config: DistillConfig, device: torch.device) -> AbstractContextManager[object]:
    """For a forward pass: bfloat16 where it does no harm (torch's autocast), if the configuration asks for it.

    Heads and losses are computed outside of it: sums of exponentials need float32.
    """
    if not config.mixed_precision:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
