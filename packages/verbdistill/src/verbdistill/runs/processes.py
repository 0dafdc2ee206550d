"""The processes of a run that torchrun starts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist


@contextmanager
def joined() -> Iterator[torch.device]:
    """Joins the processes that torchrun has told each other of, if any; gives this one's device."""
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield device
        return
    # Gloo beside NCCL: some of what is exchanged is on the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
