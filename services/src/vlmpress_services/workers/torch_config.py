"""How Ray Train sets torch up on workers: each with a GPU that no other one sees, or on cores alone."""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray.train.torch import TorchConfig

_Backend: Any = TorchConfig().backend_cls


class _OwnGpus(_Backend):
    """Else Ray 2.60 shows each worker the GPUs of all workers of its machine, and takes nccl where torch has none."""

    share_cuda_visible_devices = False

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Begins the process group."""
        has_cuda = all(worker_group.execute(torch.cuda.is_available))
        if not has_cuda:
            backend_config = replace(backend_config, backend="gloo")
        super().on_start(worker_group, backend_config)
        if not has_cuda:
            worker_group.execute(_use_cores)


@dataclass
class OwnGpus(TorchConfig):
    """A worker's CUDA_VISIBLE_DEVICES names its own GPUs only."""

    @property
    def backend_cls(self) -> Any:
        """What Ray Train calls on the workers."""
        return _OwnGpus


def _use_cores() -> None:
    # Ray may have counted GPUs that torch cannot use.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
