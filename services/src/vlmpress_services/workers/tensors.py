"""Dataclasses of tensors on their way through Ray's object store, which takes arrays as they are but copies tensors."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


class _Bytes:
    """A tensor's own bytes; numpy has no bfloat16."""

    def __init__(self, tensor: Tensor) -> None:
        self._type, self._shape = tensor.dtype, tensor.shape
        self._array: np.ndarray[Any, Any] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()

    def tensor(self, device: torch.device | str) -> Tensor:
        """A copy: what lies in the store may not be written, and goes away."""
        return torch.from_numpy(self._array.copy()).view(self._type).reshape(self._shape).to(device)


def packed(value: Any) -> Any:
    """Tensors in dataclasses, tuples and lists as bytes; everything else as it is."""
    if isinstance(value, Tensor):
        return _Bytes(value)
    if isinstance(value, tuple | list):
        return type(value)(packed(each) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return _Fields(type(value), {field.name: packed(getattr(value, field.name)) for field in fields(value)})
    return value


def unpacked(value: Any, device: torch.device | str = "cpu") -> Any:
    """What `packed` was given, tensors on a device."""
    if isinstance(value, _Bytes):
        return value.tensor(device)
    if isinstance(value, tuple | list):
        return type(value)(unpacked(each, device) for each in value)
    if isinstance(value, _Fields):
        return value.made(device)
    return value


class _Fields:
    """A dataclass's type and packed fields."""

    def __init__(self, type_: type, values: dict[str, Any]) -> None:
        self._type, self._values = type_, values

    def made(self, device: torch.device | str) -> Any:
        return self._type(**{name: unpacked(value, device) for name, value in self._values.items()})
