"""How many matrices of the second moment's size are alive at once, the caller's own not counted."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quantpack import Scheme
from quantpack.calibration.sites import Method, Site
from quantpack.methods.ecm import Ecm
from quantpack.methods.gptq import Gptq


class Watch(TorchDispatchMode):
    """Counts the storages of at least `size_bytes` that operators have made and somebody still holds."""

    def __init__(self, size_bytes: int, own: torch.Tensor) -> None:
        super().__init__()
        self.size_bytes, self.own = size_bytes, own.untyped_storage().data_ptr()
        self.made: list[weakref.ref[torch.Tensor]] = []
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.size_bytes:
                self.made.append(weakref.ref(tensor))
        alive = {tensor.untyped_storage().data_ptr() for made in self.made if (tensor := made()) is not None}
        self.peak = max(self.peak, len(alive - {self.own}))
        return result


@pytest.mark.parametrize(
    ("method", "most"),
    [(Gptq(), 1), (Gptq(activation_order=True), 1), (Ecm(alpha=0.5, rounding="gptq"), 2)],
    ids=["gptq", "ordered", "ecm"],
)
def test_matrices_alive(method: Method, most: int, make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme(group_size=8), num_outputs=(4,), num_inputs=96)
    moment = site.activations.second_moment
    assert moment is not None
    with Watch(96 * 96 * 4, moment) as watch:
        method.quantize_site(site)
    assert watch.peak == most
