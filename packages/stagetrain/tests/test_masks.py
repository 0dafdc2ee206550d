import pytest
import torch

from stagetrain.attaching import masks, pooling
from stagetrain.errors import PoolingUnsupportedError
from stagetrain.families import UnitGroup

# Row 0: text, unit of 3, unit of 2, text; row 1: all text.
MEMBERS = [[[0], [1, 2], [3], [4, 5], [6]], [[place] for place in range(7)]]


def plan() -> pooling.PoolPlan:
    three = UnitGroup((1, 3), torch.tensor([0]), torch.tensor([[1, 2, 3]]))
    two = UnitGroup((1, 2), torch.tensor([0]), torch.tensor([[4, 5]]))
    units = [(three, torch.tensor([[0, 0, 1]]), 2), (two, torch.tensor([[0, 0]]), 1)]
    return pooling.plan_pooling(torch.zeros(2, 7), units)


@pytest.mark.parametrize("additive", [False, True])
def test_a_pooled_token_sees_what_its_members_see(additive: bool) -> None:
    made, mask = plan(), torch.ones(1, 1, 7, 7, dtype=torch.bool).tril()
    given = torch.where(mask, 0.0, torch.finfo(torch.float32).min) if additive else mask
    pooled = masks.pool_attention_mask(given, made, made.last, made.real)
    seen = pooled == 0 if additive else pooled
    for row, windows in enumerate(MEMBERS):
        padding = made.sizes.shape[1] - len(windows)
        for query in range(made.sizes.shape[1]):
            for key in range(made.sizes.shape[1]):
                expected = query == key
                if query >= padding and key >= padding:
                    members = [(q, k) for q in windows[query - padding] for k in windows[key - padding]]
                    expected = any(bool(mask[0, 0, q, k]) for q, k in members)
                assert bool(seen[row, 0, query, key]) == expected


def test_padding_mask_follows_the_last_member() -> None:
    made = plan()
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]])
    assert masks.pool_padding_mask(mask, made.last, made.real).tolist() == [
        [0, 0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1, 1],
    ]


def test_positions_that_restart_are_rows_of_their_own() -> None:
    assert masks.restart_mask(torch.arange(4).expand(2, 4)) is None
    mask = masks.restart_mask(torch.tensor([[0, 1, 0, 1]]))
    assert mask is not None
    assert mask[0, 0].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_masks_of_other_kinds_are_refused() -> None:
    with pytest.raises(PoolingUnsupportedError, match="expected a mask tensor, got dict"):
        masks.checked_mask({}, 3)
    with pytest.raises(PoolingUnsupportedError, match="expected a mask of 3 keys, got 2"):
        masks.checked_mask(torch.ones(1, 2), 3)
