"""Changed packed files: each is read or refused by a QuantpackError, in little memory; what is checked can be read."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from quantpack import Block, QuantpackError, Scheme, quantize_tensor
from quantpack.container.reading import PackReader
from quantpack.container.writing import PackWriter


def small_packs(folder: Path) -> Iterator[bytes]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    agq = Scheme(bits=3, granularity="agq", blocks=(Block(share=0.5, group_size=2), Block(share=0.5, num_channels=2)))
    schemes = [
        (Scheme(group_size=4), (3, 5), torch.float32),
        (agq, (4, 6), torch.bfloat16),
        (Scheme(granularity="tensor", symmetric=True, bits=2), (2, 3, 2), torch.float16),
        (Scheme(granularity="rows", num_rows=2, axis="in"), (5, 3), torch.float64),
    ]
    for number, (scheme, shape, dtype) in enumerate(schemes):
        writer = PackWriter(scheme)
        writer.add_quantized("w", quantize_tensor(randn(*shape).to(dtype), scheme))
        if number == 1:
            other = Scheme(granularity="channel")
            writer.add_quantized("v", quantize_tensor(randn(1, 9), other))
        writer.add_kept("k", randn(7).to(dtype))
        if number == 2:
            writer.add_kept("none", torch.zeros(0, 3))
            writer.add_kept("mask", torch.ones(3, 2, dtype=torch.bool))
        writer.add_alias("twin", "w")
        writer.write(folder / "small.safetensors")
        yield (folder / "small.safetensors").read_bytes()


def read(data: bytes, number: int) -> bool:
    """Whether every tensor can be read; nothing but a QuantpackError may come."""
    try:
        reader = PackReader.over(memoryview(data), "pack", num_threads=1)
        for name in reader.names:
            reader.check(name)
    except QuantpackError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise AssertionError(f"expected one short line, got {error}") from error
        return False
    if number % 4 == 0:
        for name in reader.names:
            reader.tensor(name)
        for entry in reader.index.quantized:
            reader.code_counts(entry.name)
    return True


@pytest.mark.usefixtures("little_memory")
def test_changed_parts_are_read_or_refused(
    tmp_path: Path, mutate: Callable[[int, list[bytes]], bytes], num_mutations: int
) -> None:
    bases = list(small_packs(tmp_path))
    assert all(read(base, 0) for base in bases)
    accepted = 0
    for number in range(num_mutations):
        try:
            accepted += read(mutate(number, bases), number)
        except Exception as error:
            raise AssertionError(f"mutation {number}: {error!r}") from error
    # All refused would mean that changes never get past the first check.
    assert 0.02 * num_mutations < accepted < 0.6 * num_mutations
