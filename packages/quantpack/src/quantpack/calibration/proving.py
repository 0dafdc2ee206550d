"""Tries on a model itself whether a factor can be folded, so that no name is trusted.

Powers of two are exact in binary floating point: where folding is right, the output keeps every bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from quantpack.calibration.folding import SiteOps, fold

# What is run to compare: floating tensors that everything after the site goes into.
Run = Callable[[], list[Tensor]]
# Kernels may sum in another order from run to run.
_TOLERANCE_EPS = 16


def proven_sites(sites: Sequence[SiteOps], run: Run) -> tuple[SiteOps, ...]:
    """The same sites; one whose op before cannot take a factor after all loses it."""
    if all(ops.before is None for ops in sites):
        return tuple(sites)
    expected = [tensor.clone() for tensor in run()]
    return tuple(
        ops if ops.before is None or _is_foldable(ops, run, expected) else SiteOps(linears=ops.linears, before=None)
        for ops in sites
    )


def _is_foldable(ops: SiteOps, run: Run, expected: Sequence[Tensor]) -> bool:
    num_inputs = next(iter(ops.linears.values())).in_features
    exponents = torch.randint(0, 3, (num_inputs,), generator=torch.Generator().manual_seed(0))
    with _restored(ops):
        factor = torch.exp2(exponents.float())
        fold(ops, factor)
        for linear in ops.linears.values():
            linear.weight.mul_(factor.to(linear.weight))
        got = run()
    return len(got) == len(expected) and all(map(_is_same, got, expected))


def _is_same(got: Tensor, expected: Tensor) -> bool:
    if got.shape != expected.shape:
        return False
    # What padding attends to may be nothing at all, and then it is NaN in both.
    finite = expected.isfinite()
    got, expected = got[finite], expected[finite]
    allowed = _TOLERANCE_EPS * torch.finfo(expected.dtype).eps * expected.abs().amax() if expected.numel() else 0
    return bool(((got - expected).abs() <= allowed).all())


@contextmanager
def _restored(ops: SiteOps) -> Iterator[None]:
    """Weights of the site and of the op before come back bit for bit."""
    assert ops.before is not None
    modules = (*ops.linears.values(), ops.before.module)
    params = [param for module in modules for param in module.parameters(recurse=False)]
    copies = [param.detach().clone() for param in params]
    try:
        yield
    finally:
        for param, copy in zip(params, copies, strict=True):
            param.copy_(copy)
