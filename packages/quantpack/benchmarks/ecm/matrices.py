"""Methods on trained matrices that come without a model: output error under made activations.

Shape letters: N tokens, S sampled tokens, O outputs, I inputs.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from ecm.cells import Cells
from ecm.fidelity import LEAST_BYTES, against_entropy
from safetensors.torch import load_file
from torch import Tensor

from quantpack import AgqSpace, Block, QuantizedTensor, Scheme, dequantize
from quantpack.calibration.sites import Activations, Method, Site
from quantpack.methods.ecm import Ecm
from quantpack.methods.nearest import Nearest
from quantpack.methods.registry import METHODS
from quantpack.scheme import Axis
from quantpack.search.agq import search_agq
from quantpack.search.candidates import output_error
from quantpack.search.sizing import CodeSize, size_of

_LEAST_WIDTH = 64
_NUM_CALIBRATION, _NUM_SAMPLES, _NUM_TEST = 4096, 512, 2048
# Files with few matrices get several draws of activations.
_LEAST_DRAWS = 9
_ALPHA = 0.5
RIVALS = ("rtn", "gptq", "awq", "mbq", "smoothquant")
GRANULARITIES = ("group", "channel", "tensor")
ECM_ROUNDINGS: Mapping[str, Method] = {
    "nearest": Ecm(),
    "gptq": Ecm(rounding="gptq"),
    "scaled": Ecm(alpha=_ALPHA),
    "scaled-gptq": Ecm(alpha=_ALPHA, rounding="gptq"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A matrix [O, I] in bfloat16, its name, what calibration saw of its input, and other tokens [N, I]."""

    name: str
    weight: Tensor
    activations: Activations
    test: Tensor

    def site(self, scheme: Scheme) -> Site:
        """What a method is given."""
        return Site(
            weights={self.name: self.weight},
            schemes={self.name: scheme},
            activations=self.activations,
            scalable=True,
        )


def measure_matrices(cells: Cells, folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        cases = _cases(path)
        if not cases:
            continue
        # Groups that are a part of a row.
        group = 128 if min(case.weight.shape[1] for case in cases) >= 128 else 32
        for bits in (4, 3):
            _measure_file(cells, path.stem, cases, bits, group)


def _measure_file(cells: Cells, file: str, cases: list[Case], bits: int, group: int) -> None:
    where = {"file": file, "bits": bits, "group": group, "matrices": len({case.name for case in cases})}
    for granularity in GRANULARITIES:
        scheme = Scheme(bits=bits, granularity=granularity, group_size=group)  # type: ignore[arg-type]
        for name in RIVALS:
            make = partial(_measured, cases, scheme, METHODS[name]())
            cells.measure("matrices", make, **where, method=name, granularity=granularity)
    blocks = (Block(share=0.05, group_size=group), Block(share=0.95, num_channels=2))
    for axis in ("out", "in"):
        for symmetric in (False, True):
            scheme = Scheme(bits=bits, granularity="agq", axis=axis, blocks=blocks, symmetric=symmetric)  # type: ignore[arg-type]
            for name, method in ECM_ROUNDINGS.items():
                kind = f"agq-{axis}{'-symmetric' if symmetric else ''}"
                make = partial(_measured, cases, scheme, method)
                cells.measure("matrices", make, **where, method=f"ecm-{name}", granularity=kind)
        make = partial(_searched, cases, bits, group, axis)  # type: ignore[arg-type]
        cells.measure("matrices", make, **where, method="ecm-search", granularity=f"agq-{axis}")


def _cases(path: Path) -> list[Case]:
    """In bfloat16, as checkpoints come; matrices narrower than 64 are left out, and what a name says is no linear."""
    matrices = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in load_file(path).items()
        if tensor.dim() == 2 and min(tensor.shape) >= _LEAST_WIDTH and "emb" not in name
    }
    draws = max(1, _LEAST_DRAWS // max(len(matrices), 1))
    return [
        Case(name=name, weight=weight, **_activations(weight.shape[1], seed=zlib.crc32(name.encode()) + draw))
        for name, weight in sorted(matrices.items())
        for draw in range(draws)
    ]


def _activations(num_inputs: int, seed: int) -> dict[str, Any]:
    """Tokens whose covariance has a power-law spectrum, and channels of very different size, as in trained models."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(num_inputs, num_inputs, generator=generator))
    deviations = torch.arange(1, num_inputs + 1).float().rsqrt()
    gains = torch.exp(torch.randn(num_inputs, generator=generator))
    mix = (basis * deviations) @ basis.T * gains
    tokens = torch.randn(_NUM_CALIBRATION + _NUM_TEST, num_inputs, generator=generator) @ mix
    seen, test = tokens[:_NUM_CALIBRATION], tokens[_NUM_CALIBRATION:]
    activations = Activations(
        num_tokens=len(seen),
        max_abs=seen.abs().amax(0),
        mean_abs=seen.abs().mean(0),
        second_moment=seen.T @ seen / len(seen),
        samples=seen[:_NUM_SAMPLES].clone(),
        is_visual=torch.arange(_NUM_SAMPLES) % 2 == 0,
    )
    return {"activations": activations, "test": test.clone()}


def _measured(cases: list[Case], scheme: Scheme, method: Method) -> dict[str, Any]:
    results = []
    for case in cases:
        result = method.quantize_site(case.site(scheme))
        results.append((case, result.quantized[case.name], result.factor))
    return _summary(results)


def _summary(results: list[tuple[Case, QuantizedTensor, Tensor | None]]) -> dict[str, Any]:
    """Bytes, and the mean of ||x w - x w'|| / ||x w|| over matrices and draws; entropy of the large tensors."""
    size, errors, excesses = CodeSize(), [], []
    for case, quantized, factor in results:
        size = size + size_of(quantized)
        restored = dequantize(quantized, torch.float32)
        if factor is not None:
            restored = restored / factor
        errors.append(output_error(case.weight.float(), restored, case.test) ** 0.5)
        if quantized.codes.numel() // 2 >= LEAST_BYTES:
            excesses.append(against_entropy(quantized)["over_entropy"])
    summary = {
        "weights": size.num_weights,
        "packed": size.code_bytes_packed,
        "compressed": size.code_bytes_compressed,
        "side": size.side_bytes,
        "error": fmean(errors),
    }
    return {**summary, "over_entropy": max(excesses)} if excesses else summary


def _searched(cases: list[Case], bits: int, group: int, axis: Axis) -> dict[str, Any]:
    """AGQ's search with the built-in proxy: on the whole no worse than one scale a row, on the sampled tokens."""
    channel = Scheme(bits=bits, granularity="channel")
    named = {f"{number}": case for number, case in enumerate(cases)}

    def error(name: str, weight: Tensor) -> float:
        case = named[name]
        return output_error(case.weight.float(), weight.float(), case.activations.samples)

    def evaluate(weights: Mapping[str, Tensor]) -> float:
        return 1 - fmean(error(name, weight) for name, weight in weights.items())

    rows = {
        name: dequantize(Nearest().quantize_site(case.site(channel)).quantized[case.name])
        for name, case in named.items()
    }
    sites = [
        replace(case.site(channel), weights={name: case.weight}, schemes={name: channel})
        for name, case in named.items()
    ]
    found = search_agq(sites, evaluate, evaluate(rows), AgqSpace(bits=bits, axis=axis, group_size=group))
    results: list[tuple[Case, QuantizedTensor, Tensor | None]] = []
    for name, case in named.items():
        quantized = Nearest().quantize_site(case.site(found.schemes[name])).quantized[case.name]
        results.append((case, quantized, None))
    return {**_summary(results), "trials": len(found.trials)}
