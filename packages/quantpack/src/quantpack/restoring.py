"""Puts a model back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Every parameter comes back bit for bit; a copy of all is in memory meanwhile."""
    copies = {name: param.detach().clone() for name, param in model.named_parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, param in model.named_parameters():
                param.copy_(copies[name])
