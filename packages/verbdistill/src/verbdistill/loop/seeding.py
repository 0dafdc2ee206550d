"""Random numbers keyed on where a run is, so that a resumed run draws what an unbroken one would."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*parts: object) -> int:
    """A seed below 2^63 for a place in a run."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """The global generators of the CPU and of `device` begin with `seed`; the caller's are as before afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
