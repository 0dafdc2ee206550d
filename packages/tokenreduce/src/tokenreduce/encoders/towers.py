"""The features of a vision tower alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tokenreduce.errors import EncoderError
from tokenreduce.reducing import VisualGrid

if TYPE_CHECKING:
    from PIL import Image

# LLaVA's: the last layer is trained for CLS, the one before still tells places apart.
DEFAULT_LAYER = -2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TowerEncoder:
    """A vision tower alone: CLIP, SigLIP or SigLIP2.

    Attributes:
        tower: The vision model, in eval mode.
        processor: Its image processor.
        layer: Index into the hidden states, of which 0 is the embeddings and -1 the last layer.
    """

    tower: Any
    processor: Any
    layer: int = DEFAULT_LAYER

    def __post_init__(self) -> None:
        num_states = self.tower.config.num_hidden_layers + 1
        if not -num_states <= self.layer < num_states:
            raise EncoderError(f"layer: expected {-num_states} to {num_states - 1}, got {self.layer}")

    def encode(self, images: Sequence[Image.Image]) -> list[list[VisualGrid]]:
        """One view an image, CLS and padding dropped."""
        return self.run(self.prepare(images))

    def prepare(self, images: Sequence[Image.Image]) -> Any:
        """The images as the tower's inputs."""
        return self.processor(list(images), return_tensors="pt")

    @torch.no_grad()
    def run(self, inputs: Any) -> list[list[VisualGrid]]:
        """What `encode` gives, from what `prepare` gave: the tower's own work."""
        try:
            states = self.tower(**inputs, output_hidden_states=True).hidden_states[self.layer]
        except (ValueError, RuntimeError) as error:
            raise EncoderError(f"{type(self.tower).__name__}: cannot take these images: {error}") from error
        if "spatial_shapes" in inputs:
            shapes = [tuple(shape) for shape in inputs["spatial_shapes"].tolist()]
        else:
            patch = self.tower.config.patch_size
            shapes = [tuple(length // patch for length in inputs["pixel_values"].shape[-2:])] * len(states)
            if states.shape[1] == math.prod(shapes[0]) + 1:
                states = states[:, 1:]
        return [
            [VisualGrid(features=state[: height * width].unflatten(0, (height, width)))]
            for state, (height, width) in zip(states, shapes, strict=True)
        ]
