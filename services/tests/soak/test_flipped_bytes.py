"""Every bit of every file of a small artifact, flipped alone, is found; by default one bit of each byte."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from vlmpress.artifact import ArtifactFaultError
from vlmpress_services.store.local import LocalStore


def test_every_flip_is_found(store: LocalStore, add_log: Any, count: Callable[[int, int], int]) -> None:
    artifact = add_log("hello, every byte of this counts\n" * 3)
    chance = random.Random(0)
    num_flips = 0
    for path in sorted(path for path in artifact.path.iterdir()):
        whole = path.read_bytes()
        for position in range(len(whole)):
            values = [whole[position] ^ (1 << bit) for bit in range(8)]
            values = values if count(1, 0) else [chance.choice(values)]
            for value in values:
                path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
                with pytest.raises(ArtifactFaultError):
                    store.verify(artifact.digest)
                num_flips += 1
        path.write_bytes(whole)
    store.verify(artifact.digest)
    print(f"flips {num_flips}, all found")  # noqa: T201
