import pytest
import torch

from tokenreduce import FeatureError, PolicyError
from tokenreduce.reducers.attention_selection import AttentionSelection
from tokenreduce.reducing import VisualGrid


def cosine(a, b):
    return float(a @ b / max(float(a.norm() * b.norm()), 1e-12))


def slowly_selected(view, num_dominant, num_contextual):
    """Pairs of place and token, in raster order."""
    height, width = view.features.shape[:2]
    positions = [(row, column) for row in range(height) for column in range(width)]
    by_attention = sorted(positions, key=lambda place: -float(view.attention[place]))
    dominant = by_attention[:num_dominant]
    rest = [place for place in positions if place not in dominant]
    groups = {rest[index * len(rest) // num_contextual]: [] for index in range(num_contextual)}
    for place in rest if num_contextual else []:
        target = max(groups, key=lambda other: cosine(view.features[place], view.features[other]))
        groups[place if place in groups else target].append(place)
    parts = [[place] for place in dominant] + list(groups.values())
    means = [
        (torch.tensor(part).double().mean(dim=0).tolist(), sum(view.features[place].double() for place in part))
        for part in parts
    ]
    tokens = [(place, total / len(part)) for (place, total), part in zip(means, parts, strict=True)]
    return sorted(tokens, key=lambda pair: pair[0])


@pytest.mark.parametrize("amounts", [(1, 0), (1, 1), (3, 4), (9, 2), (4, 20), (20, 0), (20, 14)])
@pytest.mark.parametrize("shape", [(1, 35), (5, 7), (7, 5)])
def test_against_the_slow_reference(shape, amounts, make_view, reduce):
    view = make_view(*shape, seed=sum(amounts))
    (left,) = reduce(AttentionSelection(num_dominant=amounts[0], num_contextual=amounts[1]), [view])
    expected = slowly_selected(view, *amounts)
    torch.testing.assert_close(left.places, torch.tensor([place for place, _ in expected], dtype=torch.float32))
    torch.testing.assert_close(left.tokens, torch.stack([token for _, token in expected]).float())


def test_dominant_tokens_are_untouched(make_view, reduce):
    view = make_view(4, 4)
    (left,) = reduce(AttentionSelection(num_dominant=6, num_contextual=3), [view])
    for place in view.attention.flatten().topk(6).indices.tolist():
        assert any(torch.equal(token, view.features.flatten(0, 1)[place]) for token in left.tokens)


def test_equal_attention_keeps_the_first_in_raster_order(make_view, reduce):
    view = VisualGrid(features=make_view(4, 4).features, attention=torch.ones(4, 4))
    (left,) = reduce(AttentionSelection(num_dominant=5, num_contextual=0), [view])
    assert left.places.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0]]


@pytest.mark.parametrize(("count", "dominant"), [(64, 54), (63, 54), (7, 6), (6, 6), (1, 1), (128, 108)])
def test_a_count_is_shared_as_the_two_numbers_are(count, dominant, make_view):
    view = make_view(12, 12)
    (left,) = AttentionSelection(num_dominant=54, num_contextual=10).reduce_to([view], [count])
    expected = slowly_selected(view, dominant, count - dominant)
    torch.testing.assert_close(left.tokens, torch.stack([token for _, token in expected]).float())


def test_gradients_do_not_flow_into_the_attention(make_view, reduce):
    attention = make_view(4, 4).attention.requires_grad_()
    view = VisualGrid(features=make_view(4, 4).features.requires_grad_(), attention=attention)
    reduce(AttentionSelection(num_dominant=3, num_contextual=1), [view])[0].tokens.sum().backward()
    assert attention.grad is None


@pytest.mark.parametrize(
    ("attention", "match"),
    [
        (None, r"attention of view 0: expected shape \[4, 4\], got None"),
        (torch.ones(16), r"expected shape \[4, 4\], got \[16\]"),
        (torch.full((4, 4), torch.nan), "finite"),
    ],
)
def test_missing_or_bad_attention(attention, match, make_view, reduce):
    with pytest.raises(FeatureError, match=match):
        reduce(AttentionSelection(), [VisualGrid(features=make_view(4, 4).features, attention=attention)])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_dominant": 0}, "num_dominant: expected an integer >= 1, got 0"),
        ({"num_contextual": -1}, "num_contextual: expected an integer >= 0, got -1"),
        ({"num_dominant": 1.5}, "num_dominant: .* got 1.5"),
    ],
)
def test_bad_parameters(options, match):
    with pytest.raises(PolicyError, match=match):
        AttentionSelection(**options)
