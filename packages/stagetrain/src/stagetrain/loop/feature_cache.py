"""Keeps what a frozen vision tower makes of an image, so that no image is encoded twice.

Every image is encoded alone: its features do not depend on which others share its batch, so a run
that was stopped and goes on with an empty cache sees the very values that it would have seen.
"""

import hashlib
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from stagetrain.errors import FeatureCacheError

TOWERS = ("vision_tower", "visual")
"""What Hugging Face models call their vision tower."""

_Call = tuple[tuple[Any, ...], dict[str, Any]]


class FeatureCache:
    """Handle on a model's cache; made by `cache_vision_features`. A context manager: leaving it closes it.

    Features that no longer fit are computed again at every use. A change of the tower's weights
    empties the cache.

    Attributes:
        num_images: Images that features are kept of.
        size_bytes: Memory their features take.
        num_hits: Images answered from the cache so far.
        num_misses: Images encoded so far.
    """

    def __init__(self, tower: nn.Module, limit_bytes: int) -> None:
        self._tower = tower
        self._limit_bytes = limit_bytes
        self._kept: dict[bytes, Any] = {}
        self._stamp = _stamp(tower)
        self.size_bytes = self.num_hits = self.num_misses = 0
        self._replaced = tower.__dict__.get("forward")
        self._encode: Callable[..., Any] = tower.forward
        tower.forward = self._forward

    @property
    def num_images(self) -> int:
        """See the class."""
        return len(self._kept)

    def clear(self) -> None:
        """Forgets all features."""
        self._kept.clear()
        self.size_bytes = 0

    def close(self) -> None:
        """Forgets all features and leaves the model as it was; does nothing the second time."""
        self.clear()
        if self._tower.__dict__.get("forward") == self._forward:
            del self._tower.forward
            if self._replaced is not None:
                self._tower.forward = self._replaced

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """The tower's output for a batch, put together from those of its images."""
        _check_frozen(self._tower)
        stamp = _stamp(self._tower)
        if stamp != self._stamp:
            self._stamp = stamp
            self.clear()
        outputs = [self._image(*call) for call in _split(args, kwargs)]
        return _join(outputs)

    def _image(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The tower's output for one image."""
        key = _digest(args, kwargs)
        if key in self._kept:
            self.num_hits += 1
            return self._kept[key]
        self.num_misses += 1
        training = self._tower.training
        # Dropout in a frozen tower would keep one draw for the whole run.
        self._tower.eval()
        try:
            with torch.inference_mode(False), torch.no_grad():
                output = self._encode(*args, **kwargs)
        finally:
            self._tower.train(training)
        size_bytes = _size_bytes(output)
        if self.size_bytes + size_bytes <= self._limit_bytes:
            self._kept[key] = output
            self.size_bytes += size_bytes
        return output


def cache_vision_features(model: Any, limit_bytes: int) -> FeatureCache:
    """Has `model` encode each image once, until the handle is closed.

    Args:
        model: A model with a `vision_tower` whose tensor arguments have the images in their first dimension (Llava,
            LLaVA-OneVision, InternVL), or a `visual` of packed patches and `grid_thw` (Qwen2-VL, Qwen2.5-VL).
        limit_bytes: Memory for features, in all.

    Raises:
        FeatureCacheError: The model has no such tower, or one that trains.
    """
    tower = vision_tower(model)
    _check_frozen(tower)
    return FeatureCache(tower, limit_bytes)


def vision_tower(model: Any) -> nn.Module:
    """The vision tower of a model.

    Raises:
        FeatureCacheError: There is none under a name that Hugging Face models use.
    """
    inner = getattr(model, "model", model)
    for name in TOWERS:
        tower = getattr(inner, name, None)
        if isinstance(tower, nn.Module):
            return tower
    raise FeatureCacheError(f"feature cache: expected a model with {' or '.join(TOWERS)}, got {type(model).__name__}")


def _check_frozen(tower: nn.Module) -> None:
    for name, parameter in tower.named_parameters():
        if parameter.requires_grad:
            raise FeatureCacheError(
                f"feature cache: expected a frozen vision tower, got {type(tower).__name__} that trains {name}"
            )


def _stamp(tower: nn.Module) -> tuple[tuple[int, int], ...]:
    """Differs when weights were changed in place or put elsewhere."""
    return tuple((parameter.data_ptr(), parameter._version) for parameter in tower.parameters())


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[_Call]:
    """The call of each image."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    if not tensors:
        raise FeatureCacheError("feature cache: expected a call with pixel values, got no tensor")
    grids = kwargs.get("grid_thw")
    sizes = [1] * len(tensors[0]) if grids is None else grids.prod(-1).tolist()
    images = len(sizes)
    if any(len(value) not in (images, sum(sizes)) for value in tensors):
        shapes = ", ".join(str(tuple(value.shape)) for value in tensors)
        raise FeatureCacheError(
            f"feature cache: expected {images} images in every tensor's first dimension, got {shapes}"
        )
    starts = [0, *accumulate(sizes)]
    calls = []
    for index in range(images):
        patches, grid = slice(starts[index], starts[index + 1]), slice(index, index + 1)

        def cut(value: Any, patches: slice = patches, grid: slice = grid) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return value[grid if value is grids else patches]

        calls.append((tuple(map(cut, args)), {name: cut(value) for name, value in kwargs.items()}))
    return calls


def _digest(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Of everything that the output depends on but the weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in (*enumerate(args), *sorted(kwargs.items())):
        digest.update(f"{name}=".encode())
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
            kind = value.device.type
            digest.update(f"{kind} {torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)}".encode())
        else:
            digest.update(repr(value).encode())
    return digest.digest()


def _join(outputs: list[Any]) -> Any:
    """One output of all images from those of each; a copy, whatever the caller does to it."""
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(outputs)
    if isinstance(first, dict):
        joined = {name: _join([output[name] for output in outputs]) for name in first}
        return type(first)(**joined)
    if isinstance(first, tuple | list):
        return type(first)(_join(list(parts)) for parts in zip(*outputs, strict=True))
    return first


def _size_bytes(output: Any) -> int:
    """Of all tensors of an output, those that share memory counted once."""
    storages: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            visit(list(value.values()))
        elif isinstance(value, tuple | list):
            for each in value:
                visit(each)

    visit(output)
    return sum(storages.values())
