"""The clip search's error of each group, against one group of one row at a time."""

import numpy as np
import pytest
import torch

from quantpack import Scheme
from quantpack.methods.clipping import clip_weight, group_errors
from quantpack.methods.grid import fit_grid
from quantpack.scheme import Block

BLOCKS = (Block(share=0.3, group_size=5), Block(share=0.3, group_size=8), Block(share=0.4, num_channels=3))
SCHEMES = [
    Scheme(granularity="tensor"),
    Scheme(granularity="channel"),
    Scheme(granularity="group", group_size=7),
    Scheme(granularity="rows", num_rows=4),
    Scheme(granularity="agq", blocks=BLOCKS),
]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.granularity)
@pytest.mark.parametrize("shape", [(1, 1), (9, 23), (11, 40)], ids=str)
def test_group_errors(scheme: Scheme, shape: tuple[int, int]) -> None:
    groups = fit_grid(draw(*shape), scheme, name="w", ranking=draw(shape[0], seed=1).abs()).found.grid
    difference, samples = draw(*shape, seed=2), draw(17, shape[1], seed=3)
    found = group_errors(difference, samples, groups)
    of_weights = groups.spread(torch.arange(groups.num_groups)).numpy()
    wanted = np.zeros(groups.num_groups)
    for row in range(shape[0]):
        for group in set(of_weights[row].tolist()):
            mask = of_weights[row] == group
            parts = samples.double().numpy()[:, mask] @ difference.double().numpy()[row, mask]
            wanted[group] += np.mean(parts**2)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.granularity)
def test_only_the_ends_of_a_group_are_cut(scheme: Scheme) -> None:
    weight = draw(11, 40)
    weight[:, ::10] *= 6
    ranking = draw(11, seed=1).abs()
    cut = clip_weight(weight, scheme, draw(50, 40, seed=3), 10, name="w", ranking=ranking)
    moved = cut != weight
    assert bool(moved.any())
    assert bool((cut.abs() <= weight.abs()).all())
    groups = fit_grid(weight, scheme, name="w", ranking=ranking).found.grid
    low, high = groups.extremes(weight, 11)
    largest = groups.spread(torch.maximum(high, -low))
    assert bool((cut.abs()[moved] >= 0.549 * largest[moved]).all())
    assert bool((cut.sign() == weight.sign()).all())


def test_one_step_cuts_nothing() -> None:
    weight = draw(5, 20)
    assert torch.equal(clip_weight(weight, Scheme(), draw(9, 20), 1, name="w", ranking=None), weight)
