"""Random draws that depend on nothing but their key, so that a resumed run draws what the first one drew."""

import hashlib
from typing import Protocol, Self, TypeVar, runtime_checkable

import torch

from tokenreduce.reducing import Reducer

R = TypeVar("R", bound=Reducer)


@runtime_checkable
class Drawing(Protocol):
    """A reducer that draws at random."""

    def keyed(self, *, step: int, stream: int = 0) -> Self:
        """The same reducer, drawing for another step.

        Args:
            step: The optimizer step.
            stream: Tells apart what draws within one step: micro-batches, and processes of a data-parallel run.
        """
        ...


def keyed(reducer: R, *, step: int, stream: int = 0) -> R:
    """The reducer with its draws keyed on a step; itself where it draws nothing."""
    return reducer.keyed(step=step, stream=stream) if isinstance(reducer, Drawing) else reducer


def generator_of(seed: int, step: int, stream: int, view: int) -> torch.Generator:
    """A generator on the CPU whose state is a function of the key alone.

    The key is hashed: generators of neighbouring plain seeds are not promised to be independent.
    """
    key = hashlib.blake2b(f"{seed}/{step}/{stream}/{view}".encode(), digest_size=8).digest()
    # One bit less than eight bytes: manual_seed takes a signed number.
    return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
