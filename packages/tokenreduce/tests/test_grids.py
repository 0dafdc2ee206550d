import pytest
import torch

from tokenreduce import FeatureError, GridError, dfmr, plan, pool_grids, sigmas_of_grids, unpack_naflex, unpad
from tokenreduce.policy import ReductionPolicy

SIZES = [(4, 6), (7, 3), (4, 6), (1, 1), (7, 8)]


@pytest.fixture
def grids():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(h, w, 5, generator=generator) * (1 + h) for h, w in SIZES]


@pytest.fixture
def padded(grids):
    """The grids at the top left of [5, 7, 8, 5]; NaN elsewhere."""
    features = torch.full((len(grids), 7, 8, 5), float("nan"))
    for row, grid in enumerate(grids):
        features[row, : grid.shape[0], : grid.shape[1]] = grid
    return features


@pytest.fixture
def flat(grids):
    """The grids in NaFlex's layout [5, 60, 5]; NaN after them."""
    features = torch.full((len(grids), 60, 5), float("nan"))
    for row, grid in enumerate(grids):
        features[row, : grid.shape[0] * grid.shape[1]] = grid.flatten(0, 1)
    return features


@pytest.mark.parametrize("mode", ["residual", "literal"])
def test_padding_has_no_influence(grids, padded, flat, mode):
    single = [dfmr(grid[None], 0.8, mode=mode) for grid in grids]
    sizes = torch.tensor(SIZES)
    for reduction in (
        dfmr(padded, 0.8, mode=mode, grid_sizes=sizes),
        dfmr(padded, 0.8, mode=mode, grid_sizes=SIZES),
        dfmr(unpack_naflex(flat, sizes), 0.8, mode=mode),
        dfmr(unpad(padded, sizes.int()), 0.8, mode=mode),
    ):
        assert reduction.factors == tuple(one.factors[0] for one in single)
        assert torch.equal(reduction.sigmas, torch.cat([one.sigmas for one in single]))
        for tokens, one in zip(reduction.pooled, single, strict=True):
            assert torch.equal(tokens, one.pooled[0])
    assert len({one.factors for one in single}) > 1


def test_gradients_reach_the_valid_part_only(padded):
    padded.requires_grad_()
    torch.cat(dfmr(padded, 0.8, grid_sizes=SIZES).pooled).sum().backward()
    for row, (h, w) in enumerate(SIZES):
        assert (padded.grad[row, :h, :w] > 0).all()
        assert padded.grad[row].count_nonzero() == h * w * 5


def test_grids_are_views(padded, flat):
    for grid in [*unpad(padded, SIZES), *unpack_naflex(flat, SIZES)]:
        assert grid.untyped_storage().data_ptr() in {x.untyped_storage().data_ptr() for x in (padded, flat)}


def test_plans_of_different_grids(grids):
    policy = ReductionPolicy(tau=0.8)
    images, mean = plan(grids, policy)
    assert [image.factor for image in images] == list(dfmr(grids, 0.8).factors)
    assert mean == sum(dfmr(grids, 0.8).num_tokens) / len(grids)
    with pytest.raises(FeatureError, match="at least one image"):
        plan([], policy)


def test_types_and_channels_may_differ():
    grids = [torch.randn(4, 4, 3), torch.randn(4, 4, 3).bfloat16(), torch.randn(4, 4, 8)]
    pooled = pool_grids(grids, [2, 2, 1])
    assert [(list(x.shape), x.dtype) for x in pooled] == [
        ([4, 3], torch.float32),
        ([4, 3], torch.bfloat16),
        ([16, 8], torch.float32),
    ]
    assert sigmas_of_grids(grids).shape == (3, 3)
    assert sigmas_of_grids([]).shape == (0, 3)
    assert pool_grids([], []) == []


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(4, 4)], r"grid_sizes: expected shape \[2, 2\], got \[1, 2\]"),
        ([(4, 4), (0, 4)], "grid_sizes: expected 1 x 1 to 4 x 5, got 0 x 4 of image 1"),
        ([(4, 6), (4, 4)], "got 4 x 6 of image 0"),
        (torch.ones(2, 2), "expected integers, got torch.float32"),
        ([(4, 4), (4,)], r"grid_sizes: expected integers \[2, 2\], got expected sequence"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(GridError, match=message):
        dfmr(torch.zeros(2, 4, 5, 3), 0.1, grid_sizes=sizes)


def test_sizes_are_for_padded_batches_only(grids):
    with pytest.raises(GridError, match="expected none beside a sequence of grids"):
        dfmr(grids, 0.1, grid_sizes=SIZES)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(GridError, match="spatial_shapes: expected 1 to 12 positions, got 4 x 4 of image 0"):
        unpack_naflex(torch.zeros(1, 12, 3), [(4, 4)])
    with pytest.raises(GridError, match="got 0 x 4 of image 0"):
        unpack_naflex(torch.zeros(1, 12, 3), [(0, 4)])
    # (-3) x (-4) are 12 positions as well.
    with pytest.raises(GridError, match="got -3 x -4 of image 0"):
        unpack_naflex(torch.zeros(1, 12, 3), [(-3, -4)])
    with pytest.raises(FeatureError, match=r"expected \[B, N, D\], got shape \[1, 3, 4, 3\]"):
        unpack_naflex(torch.zeros(1, 3, 4, 3), [(3, 4)])
    with pytest.raises(FeatureError, match=r"expected \[B, H, W, D\], got shape \[1, 12, 3\]"):
        unpad(torch.zeros(1, 12, 3), [(3, 4)])
