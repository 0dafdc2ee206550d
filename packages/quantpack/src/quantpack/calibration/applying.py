"""Puts what a method made of a site into the model: codes as weights, the factor into the op before."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from quantpack.affine import QuantizedTensor, dequantize
from quantpack.calibration.folding import OpBefore, SiteOps, fold
from quantpack.calibration.sites import Activations, Site, SiteResult
from quantpack.errors import CalibrationError
from quantpack.scheme import Scheme

Visit = Callable[[Site], SiteResult]


class Applier:
    """Asks for the codes of one site after another and changes the model.

    Args:
        model: Whose weights the sites hold.
        visit: Makes the codes.
        schemes: By weight name.
        visual_weights: By weight name; 1 where there is none.
        store: Called for each changed tensor; see `walk`.
        on_progress: Called after each weight.
    """

    def __init__(
        self,
        model: nn.Module,
        visit: Visit,
        schemes: Mapping[str, Scheme],
        visual_weights: Mapping[str, float],
        store: Callable[[str, QuantizedTensor | Tensor], None] | None,
        on_progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self.visited: dict[str, None] = {}
        self._visit = visit
        self._schemes = schemes
        self._visual_weights = visual_weights
        self._store = store or (lambda _name, _value: None)
        self._on_progress = on_progress or (lambda _done, _total, _name: None)
        self._folded: list[OpBefore] = []
        self._num_done = 0
        self._num_weights = sum(param.numel() for name, param in model.named_parameters() if name in schemes)

    @torch.no_grad()
    def apply(self, ops: SiteOps, activations: Activations) -> None:
        """Quantizes the site; the weights must be in memory.

        Raises:
            CalibrationError: The answer does not fit the site; names the weight. Nothing has been changed then.
        """
        linears = {f"{name}.weight": linear for name, linear in ops.linears.items()}
        # Rows that have their codes cannot be divided any more.
        is_scalable = ops.before is not None and f"{ops.before.name}.weight" not in self.visited
        first = next(iter(linears))
        site = Site(
            weights={name: linear.weight.detach() for name, linear in linears.items()},
            schemes={name: self._schemes[name] for name in linears},
            activations=activations,
            scalable=is_scalable,
            visual_weight=self._visual_weights.get(first, 1.0),
        )
        result = self._visit(site)
        _check_result(site, result)
        if result.factor is not None:
            assert ops.before is not None
            fold(ops, result.factor)
            self._folded.append(ops.before)
        for name, linear in linears.items():
            linear.weight.copy_(dequantize(result.quantized[name], linear.weight.dtype))
            self._store(name, result.quantized[name])
            self.visited[name] = None
            self._num_done += linear.weight.numel()
            self._on_progress(self._num_done, self._num_weights, name)

    def store_folded(self) -> None:
        """Stores what factors were folded into, unless it has codes by now."""
        names: dict[str, Tensor] = {}
        for before in self._folded:
            for kind, values in before.module.named_parameters(recurse=False):
                names[f"{before.name}.{kind}"] = values
        self._folded.clear()
        for name, param in names.items():
            if name not in self.visited:
                # A copy: a streamed model gives its own up.
                self._store(name, param.detach().clone())


def _check_result(site: Site, result: SiteResult) -> None:
    first = next(iter(site.weights))
    if result.quantized.keys() != site.weights.keys():
        raise CalibrationError(f"{first}: expected codes of {sorted(site.weights)}, got {sorted(result.quantized)}")
    for name, weight in site.weights.items():
        if result.quantized[name].shape != tuple(weight.shape):
            raise CalibrationError(
                f"{name}: expected codes of {list(weight.shape)}, got {list(result.quantized[name].shape)}"
            )
    if result.factor is not None and not site.scalable:
        raise CalibrationError(f"{first}: expected no factor, for nothing before it can take its inverse, got one")
