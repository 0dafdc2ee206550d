import pytest
import torch

from tokenreduce import PolicyError
from tokenreduce.reducers.token_merging import TokenMerging
from tokenreduce.reducing import VisualGrid


def cosine(a, b):
    return float(a @ b / max(float(a.norm() * b.norm()), 1e-12))


def merge_two(one, other):
    """Weighted by sizes, as ToMe merges."""
    size = one["size"] + other["size"]
    blend = {name: (one["size"] * one[name] + other["size"] * other[name]) / size for name in ("token", "place")}
    return {**blend, "size": size}


def slowly_merged(features, count, share_per_round):
    """Tokens with sizes and places; round by round, pair by pair."""
    width = features.shape[1]
    left = [
        {"token": token.double(), "place": torch.tensor([index // width, index % width]).double(), "size": 1}
        for index, token in enumerate(features.flatten(0, 1))
    ]
    while len(left) > count:
        num_merged = min(len(left) - count, max(1, int(len(left) * share_per_round)))
        sources, targets = left[0::2], left[1::2]
        pairs = []
        for source, token in enumerate(sources):
            likeness = [cosine(token["token"], other["token"]) for other in targets]
            best = max(range(len(targets)), key=likeness.__getitem__)
            pairs.append((likeness[best], source, best))
        for _, source, target in sorted(pairs, key=lambda pair: -pair[0])[:num_merged]:
            targets[target] = merge_two(targets[target], sources[source])
            sources[source] = None
        left = [(sources[index // 2] if index % 2 == 0 else targets[index // 2]) for index in range(len(left))]
        left = [token for token in left if token is not None]
    return sorted(left, key=lambda token: token["place"].tolist())


@pytest.mark.parametrize("share_per_round", [0.5, 0.25, 0.01])
@pytest.mark.parametrize("count", [1, 2, 9, 20, 34])
@pytest.mark.parametrize("shape", [(1, 35), (5, 7)])
def test_against_the_slow_reference(shape, count, share_per_round, make_view, reduce):
    view = make_view(*shape, seed=count)
    (left,) = reduce(TokenMerging(num_tokens=count, share_per_round=share_per_round), [view])
    expected = slowly_merged(view.features, count, share_per_round)
    assert sum(token["size"] for token in expected) == 35
    torch.testing.assert_close(left.tokens, torch.stack([token["token"] for token in expected]).float())
    torch.testing.assert_close(left.places, torch.stack([token["place"] for token in expected]).float())


def test_equal_neighbours_become_one_token(reduce):
    features = torch.eye(4)[[0, 0, 1, 1, 2, 2, 3, 3]].unflatten(0, (2, 4))
    (left,) = reduce(TokenMerging(num_tokens=4), [VisualGrid(features=features)])
    assert torch.equal(left.tokens, torch.eye(4))
    assert left.places.tolist() == [[0, 0.5], [0, 2.5], [1, 0.5], [1, 2.5]]


def test_one_token_is_the_mean_of_the_image(make_view, reduce):
    view = make_view(5, 6)
    (left,) = reduce(TokenMerging(num_tokens=1), [view])
    torch.testing.assert_close(left.tokens[0], view.features.mean(dim=(0, 1)))
    assert left.places.tolist() == [[2.0, 2.5]]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_tokens": -1}, "num_tokens: expected an integer >= 1, got -1"),
        ({"share": 2}, "share: expected a number above 0 and up to 1, got 2"),
        ({"share_per_round": 0.0}, "share_per_round: expected a number above 0 and up to 0.5, got 0.0"),
        ({"share_per_round": 0.6}, "share_per_round: .* got 0.6"),
    ],
)
def test_bad_parameters(options, match):
    with pytest.raises(PolicyError, match=match):
        TokenMerging(**options)
