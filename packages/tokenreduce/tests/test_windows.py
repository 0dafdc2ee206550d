import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenreduce import dfmr, sigma_per_factor
from tokenreduce.windows import image_statistics, window_centres, window_means, window_statistics

SHAPES = [(2, 8, 8, 5), (1, 24, 24, 8), (2, 5, 7, 3), (1, 1, 1, 4), (2, 3, 10, 1), (1, 11, 4, 2), (1, 2, 9, 3)]
WINDOWS = [(1, 1), (2, 2), (3, 3), (2, 5), (4, 1), (12, 12)]


def windows_of(features, p, q):
    """Every window [B, n, D], in the order of the grid."""
    _, height, width, _ = features.shape
    return [
        features[:, top : top + p, left : left + q].flatten(1, 2)
        for top in range(0, height, p)
        for left in range(0, width, q)
    ]


# These look at a tensor's shape and type only.
METADATA_ONLY = ("aten::new_zeros", "aten::new_empty", "aten::zeros_like")


class ReadCounter(TorchDispatchMode):
    """How often the values of a tensor are read, and how many operations read anything of its size at once."""

    def __init__(self, tensor):
        super().__init__()
        self.storage, self.numel = tensor.untyped_storage().data_ptr(), tensor.numel()
        self.passes, self.full_reads = 0.0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func.name() not in METADATA_ONLY:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            self.passes += (
                sum(x.numel() for x in tensors if x.untyped_storage().data_ptr() == self.storage) / self.numel
            )
            self.full_reads += any(x.numel() >= self.numel for x in tensors)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_statistics_equal_those_of_each_window(shape, window):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 + 5
    expected = [torch.var_mean(part.double(), dim=1, correction=0) for part in windows_of(features, *window)]
    fast = window_statistics(features, *window)
    # The regions come one after the other: compared without order, as pairs of variance and mean.
    pairs = torch.stack([fast.variances, fast.means], dim=-1).double()
    wanted = torch.stack([torch.stack(pair, dim=-1) for pair in expected], dim=1)
    assert pairs.shape == wanted.shape
    order, wanted_order = (x[..., 1].argsort(dim=1)[..., None].expand_as(x) for x in (pairs, wanted))
    torch.testing.assert_close(pairs.gather(1, order), wanted.gather(1, wanted_order), rtol=1e-5, atol=1e-5)
    assert fast.counts.sum() == shape[1] * shape[2]
    variance, mean = torch.var_mean(features.double().flatten(1, 2), dim=1, correction=0)
    image_mean, image_variance = image_statistics(fast)
    torch.testing.assert_close(image_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(image_variance.double(), variance, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_means_are_in_the_order_of_the_grid(shape, window):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    expected = torch.stack([part.mean(dim=1) for part in windows_of(features, *window)], dim=1)
    means = window_means(features, *window)
    assert means.shape[1:3] == (-(-shape[1] // window[0]), -(-shape[2] // window[1]))
    torch.testing.assert_close(means.flatten(1, 2), expected)


@pytest.mark.parametrize("side", [24, 25, 7, 1])
@pytest.mark.parametrize("factor", [1, 2, 3, 9])
def test_centres_are_the_means_of_the_positions_present(side, factor):
    positions = torch.arange(side, dtype=torch.float32)[None, :, None, None]
    assert torch.equal(window_centres(side, factor), window_means(positions, factor, 1).flatten())


@pytest.mark.parametrize("mode", ["residual", "literal"])
@pytest.mark.parametrize("normalize", ["image", "none"])
@pytest.mark.parametrize("side", [24, 25])
def test_sigma_reads_the_features_at_most_twice(mode, normalize, side):
    features = torch.randn(2, side, side, 8)
    with ReadCounter(features) as counter:
        sigma_per_factor(features, mode=mode, normalize=normalize)
    # Once for factor 2 and once for factor 3, window by window; nothing as large is made on the way.
    assert counter.passes == pytest.approx(2)
    assert counter.full_reads <= 2


def test_half_precision_is_converted_once():
    features = torch.randn(2, 24, 24, 8).bfloat16()
    with ReadCounter(features) as counter:
        sigma_per_factor(features)
    assert counter.passes == pytest.approx(1)


def test_dfmr_reads_once_more_to_pool():
    features = torch.randn(2, 24, 24, 8)
    with ReadCounter(features) as counter:
        dfmr(features, 1e3)
    assert counter.passes == pytest.approx(3)


def test_the_counter_counts():
    features = torch.randn(2, 4, 4, 2)
    with ReadCounter(features) as counter:
        features.square().sum()
        features[:, :2].sum()
    assert counter.passes == pytest.approx(1.5)
    assert counter.full_reads == 2


@pytest.mark.parametrize("window", [(2, 2), (3, 3), (2, 3)], ids=str)
def test_gradients_of_pooling(window):
    features = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: window_means(x, *window), (features,))
    assert torch.autograd.gradgradcheck(lambda x: window_means(x, *window), (features,))
