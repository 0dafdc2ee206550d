"""Several processes that train one model: torch.distributed where it is initialised, else one process alone."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from verbdistill.errors import VerbDistillError

Result = TypeVar("Result")
_BUCKET_BYTES = 64 * 2**20


def rank() -> int:
    """Number of this process, 0-based."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _several() else 1


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, the same in each; on the device of `values`."""
    if not _several():
        return values
    total = values.detach().to(_device(values)).clone()
    dist.all_reduce(total)
    return total.to(values.device)


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sums gradients over all processes; a parameter that none of them used stays without one."""
    if not _several():
        return
    used = summed(torch.tensor([float(parameter.grad is not None) for parameter in parameters]))
    touched = [parameter for parameter, count in zip(parameters, used.tolist(), strict=True) if count]
    for parameter in touched:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets(touched):
        gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        total = summed(flat)
        parts = total.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def equalize(parameters: Iterable[Tensor]) -> None:
    """Gives every process the first one's values."""
    if not _several():
        return
    for parameter in parameters:
        values = parameter.detach().to(_device(parameter)).contiguous()
        dist.broadcast(values, 0)
        parameter.copy_(values)


def from_first(make: Callable[[], Result]) -> Result:
    """What `make` gives in the first process, in all of them, where its errors of this package are raised too."""
    if not _several():
        return make()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = make()
        except VerbDistillError as error:
            told[1] = error
    dist.broadcast_object_list(told, 0)
    if told[1] is not None:
        raise told[1]
    result: Result = told[0]
    return result


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device(values: Tensor) -> torch.device:
    """Where the processes can exchange: NCCL knows GPUs only."""
    backend = dist.get_backend()
    if values.device.type == "cpu" and "nccl" in backend and "gloo" not in backend:
        return torch.device("cuda", torch.cuda.current_device())
    return values.device


def _buckets(parameters: Iterable[torch.nn.Parameter]) -> Iterable[list[torch.nn.Parameter]]:
    """Neighbours of one type and device, of about 64 MiB together."""
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for parameter in parameters:
        grown = size + parameter.numel() * parameter.element_size()
        alike = not bucket or (bucket[0].dtype, bucket[0].device) == (parameter.dtype, parameter.device)
        if bucket and (not alike or grown > _BUCKET_BYTES):
            yield bucket
            bucket, grown = [], parameter.numel() * parameter.element_size()
        bucket.append(parameter)
        size = grown
    if bucket:
        yield bucket
