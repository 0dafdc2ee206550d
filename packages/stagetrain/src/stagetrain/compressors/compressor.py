"""The interface of compressors: which of a few slots every visual token of a unit goes into.

Shape legend: U units, L visual tokens of a unit, D features, N slots of a unit.

A unit is what is compressed on its own: an image, a tile of one, or a frame of a video. A compressor
only says which tokens share a slot; states, positions, masks and labels follow from that in the same
way for all compressors (`stagetrain.attaching.pooling`).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

DROPPED = -1
"""Slot of a token that is left out."""


@dataclass(frozen=True, slots=True)
class Units:
    """Units of one shape before a decoder layer.

    Attributes:
        sides: Rows and columns of a unit's grid; its tokens are in raster order, L = rows * columns.
        states: Hidden states, [U, L, D]; compressors that look at no state must not touch it.
        scores: Attention that each token receives from the question, [U, L] float32; None unless asked for.
        generator: What a compressor that draws must draw from; None: torch's own random state (training).
    """

    sides: tuple[int, int]
    states: torch.Tensor
    scores: torch.Tensor | None = None
    generator: torch.Generator | None = None

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.sides[0] * self.sides[1]


def num_left(num_tokens: int, stride: int) -> int:
    """Slots of a unit where every window of `stride` tokens makes one; a remainder makes a last, smaller window."""
    return math.ceil(num_tokens / stride)


class Compressor(ABC):
    """Maps the visual tokens of a unit to slots.

    Attributes:
        name: As schedules name it.
        needs_scores: Whether `Units.scores` must be there.
        is_learned: Whether `build` gives a module; such a compressor acts before the first decoder layer only.
    """

    name: ClassVar[str]
    needs_scores: ClassVar[bool] = False
    is_learned: ClassVar[bool] = False

    def count(self, sides: tuple[int, int], stride: int) -> int:
        """N for a grid of `sides`; a function of shapes alone, for labels are cut before any state is known."""
        return num_left(sides[0] * sides[1], stride)

    def build(self, hidden_size: int, num_slots: int) -> torch.nn.Module | None:
        """The learned part of a model of `hidden_size` with at most `num_slots` slots a unit; None: there is none.

        The module's forward is (units: Units, stride: int) -> [U, N, D] in the order of slots: states that replace
        the means of the slots' tokens. Its `num_slots` is the one it was built with.
        """
        return None

    @abstractmethod
    def assign(self, units: Units, stride: int) -> torch.Tensor:
        """Slot of every token.

        Returns:
            [U, L] int64 in [0, N), or DROPPED; every slot has at least one token. The order of slots does not
            matter: they are put in the order of their last tokens.
        """
