"""The grid search for a factor that AWQ and MBQ share.

Shape letters: S sampled tokens, O outputs, I inputs.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from quantpack.calibration.sites import Site
from quantpack.errors import CalibrationError
from quantpack.methods.grid import channel_ranking, fake_quantize
from quantpack.methods.scaling import power_factor, scale_site

Loss = Callable[[Tensor], Tensor]


def search_factor(site: Site, num_ratios: int, loss: Loss) -> Tensor:
    """The factor [I] among mean|x|^(i / num_ratios), i = 0 .. num_ratios - 1, that loses least; the first of equals.

    A layer's outputs are compared with what the unscaled, unrounded weight gives. The authors compare outputs of the
    whole attention or MLP block instead where several layers share an input; a site holds its layers alone, so their
    losses are added up.

    Args:
        site: Its samples are the inputs.
        num_ratios: How many exponents are tried; 0 is one of them, 1 is not.
        loss: Output errors [S, O] of one layer, which it may overwrite -> scalar.

    Raises:
        CalibrationError: No exponent gives a finite loss.
    """
    samples = site.activations.samples
    # Every candidate is a scaled site; none of them needs the [I, I] matrix.
    plain = replace(site, activations=replace(site.activations, second_moment=None))
    wanted = {name: samples @ weight.float().T for name, weight in site.weights.items()}
    best_loss, best = float("inf"), None
    for step in range(num_ratios):
        factor = power_factor(site.activations.mean_abs, step / num_ratios)
        scaled = scale_site(plain, factor)
        total = 0.0
        for name, weight in scaled.weights.items():
            ranking = channel_ranking(scaled, name)
            rounded = fake_quantize(weight, site.schemes[name], name=name, ranking=ranking)
            total += loss((scaled.activations.samples @ rounded.T).sub_(wanted[name])).item()
        if total < best_loss:
            best_loss, best = total, factor
    if best is None:
        raise CalibrationError(f"{min(site.weights)}: expected a finite output error for some factor, got none")
    return best
