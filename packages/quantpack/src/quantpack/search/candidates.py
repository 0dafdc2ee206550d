"""The layouts AGQ tries for one matrix, from fine to coarse.

Shape letters: S sampled tokens, O outputs, I inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantpack.affine import QuantizedTensor, dequantize
from quantpack.calibration.sites import Method, Site
from quantpack.errors import SchemeError
from quantpack.methods.nearest import Nearest
from quantpack.scheme import MAX_BITS, MIN_BITS, Axis, Block, Scheme
from quantpack.search.sizing import CodeSize, size_of


@dataclass(frozen=True, kw_only=True, slots=True)
class AgqSpace:
    """Every layout that may be chosen for a matrix (ECM section 3.2).

    Attributes:
        bits: Of one code.
        symmetric: No zero points (section 3.3).
        axis: What a channel is: an output (row) or an input (column).
        group_size: n1, the weights of a channel that share a scale in the fine block; also where the search starts.
        shares: k, the parts of all channels that the fine block may have; the paper tries 1% to 10%.
        num_channels: n2, whole channels that share a scale in the coarse block; 0: all of it.
    """

    bits: int = 4
    symmetric: bool = False
    axis: Axis = "out"
    group_size: int = 128
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    num_channels: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 0)

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS or self.group_size < 1:
            raise SchemeError(f"AGQ: expected 2 to 4 bits and groups of at least 1, got {self.bits}, {self.group_size}")
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise SchemeError(f"AGQ: expected shares between 0 and 1, got {self.shares}")
        if not self.num_channels or not all(number >= 0 for number in self.num_channels):
            raise SchemeError(f"AGQ: expected numbers of channels of at least 0, got {self.num_channels}")

    def schemes(self) -> list[Scheme]:
        """Groups everywhere first, then every coarse block with every fine share."""
        plain = Scheme(
            bits=self.bits, granularity="group", group_size=self.group_size, symmetric=self.symmetric, axis=self.axis
        )
        layouts = [
            (Block(share=share, group_size=self.group_size), Block(share=1 - share, num_channels=number))
            for number in self.num_channels
            for share in self.shares
        ]
        return [plain, *(replace(plain, granularity="agq", blocks=blocks) for blocks in layouts)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One matrix under one scheme.

    Attributes:
        scheme: How it would be quantized.
        size: What it would take.
        error: ||x w - x w'||^2 / ||x w||^2 over the sampled tokens; of the weights themselves without samples.
    """

    scheme: Scheme
    size: CodeSize
    error: float


def candidates(site: Site, name: str, space: AgqSpace) -> list[Candidate]:
    """The layouts of one weight of a site worth trying, from fine to coarse.

    Bytes fall and errors grow along the list: a layout that is larger than another without being
    better is left out, and so are layouts that come to the same in a small matrix. The first is always
    the one with groups everywhere, where the search starts.
    """
    reference = site.weights[name].float()
    tried: list[Candidate] = []
    for scheme in space.schemes():
        quantized = quantize_one(site, name, scheme)
        error = output_error(reference, dequantize(quantized, torch.float32), site.activations.samples)
        tried.append(Candidate(scheme=scheme, size=size_of(quantized), error=error))
    start, *others = tried
    chosen = [start]
    for candidate in sorted(others, key=lambda each: (each.size.num_bytes, each.error)):
        smaller = [each for each in others if each.size.num_bytes < candidate.size.num_bytes]
        better_than_smaller = all(candidate.error < each.error for each in smaller)
        new = all(candidate.size.num_bytes != each.size.num_bytes for each in chosen)
        if candidate.size.num_bytes < start.size.num_bytes and better_than_smaller and new:
            chosen.append(candidate)
    return sorted(chosen, key=lambda each: -each.size.num_bytes)


def quantize_one(site: Site, name: str, scheme: Scheme, method: Method | None = None) -> QuantizedTensor:
    """One weight of a site under a scheme, round to nearest unless another method is given."""
    single = replace(site, weights={name: site.weights[name]}, schemes={name: scheme})
    return (method or Nearest()).quantize_site(single).quantized[name]


def output_error(weight: Tensor, restored: Tensor, samples: Tensor) -> float:
    """||x w - x w'||^2 / ||x w||^2 for weights [O, I] and samples [S, I]; of the weights alone when S is 0."""
    inputs = samples if len(samples) else torch.eye(weight.shape[1])
    wanted = inputs @ weight.T
    power = float(wanted.square().sum())
    return float((inputs @ (restored - weight).T).square().sum()) / power if power else 0.0


def total_size(chosen: Sequence[Candidate]) -> CodeSize:
    """What all of them take together."""
    return sum((candidate.size for candidate in chosen), start=CodeSize())
