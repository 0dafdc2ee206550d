import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagetrain import pooling
from stagetrain.errors import PoolingUnsupportedError

TEXT = pooling.TEXT


def reference_windows(images: list[int], stride: int) -> list[list[int]]:
    """Members of every window of one row, token by token."""
    windows: list[list[int]] = []
    for token, image in enumerate(images):
        previous = windows[-1] if windows else []
        joins = image != TEXT and previous and images[previous[0]] == image and len(previous) < stride
        if joins:
            previous.append(token)
        else:
            windows.append([token])
    return windows


@st.composite
def image_rows(draw: st.DrawFn) -> list[list[int]]:
    """Rows of equal length out of text and images of 1 to 7 tokens, some side by side."""
    rows, number = [], 0
    for _ in range(draw(st.integers(1, 3))):
        row: list[int] = []
        for is_image, length in draw(st.lists(st.tuples(st.booleans(), st.integers(1, 7)), min_size=1, max_size=5)):
            row += [number if is_image else TEXT] * length
            number += is_image
        rows.append(row)
    width = max(map(len, rows))
    return [[TEXT] * (width - len(row)) + row for row in rows]


@settings(max_examples=60, deadline=None)
@given(rows=image_rows(), stride=st.integers(1, 9))
def test_plan_pools_as_the_reference_does(rows: list[list[int]], stride: int) -> None:
    plan = pooling.plan_pooling(torch.tensor(rows), stride)
    torch.manual_seed(0)
    states = torch.randn(len(rows), len(rows[0]), 3)
    positions = torch.randint(0, 5000, (len(rows), len(rows[0])))
    pooled, pooled_positions = pooling.pool_states(states, plan), pooling.pool_positions(positions, plan)
    for index, row in enumerate(rows):
        windows = reference_windows(row, stride)
        padding = plan.sizes.shape[1] - len(windows)
        assert plan.sizes[index].tolist() == [0] * padding + [len(window) for window in windows]
        assert plan.last[index, padding:].tolist() == [window[-1] for window in windows]
        assert not pooled[index, :padding].any()
        for slot, window in enumerate(windows, padding):
            torch.testing.assert_close(pooled[index, slot], states[index, window].mean(0), rtol=1e-6, atol=1e-6)
            assert pooled_positions[index, slot] == sum(positions[index, window].tolist()) // len(window)
            if len(window) == 1:
                assert torch.equal(pooled[index, slot], states[index, window[0]])


def test_positions_beyond_float16_stay_exact() -> None:
    plan = pooling.plan_pooling(torch.zeros(1, 4, dtype=torch.int64), 4)
    assert pooling.pool_positions(torch.tensor([[100001, 100002, 100003, 100004]]), plan).tolist() == [[100002]]


def test_pooling_of_half_precision_sums_in_float32() -> None:
    plan = pooling.plan_pooling(torch.zeros(1, 64, dtype=torch.int64), 64)
    states = torch.full((1, 64, 1), 2000.0, dtype=torch.float16)
    assert pooling.pool_states(states, plan).tolist() == [[[2000.0]]]


def test_images_side_by_side_are_told_apart() -> None:
    visual = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]).bool()
    assert pooling.number_images(visual, 3).tolist() == [[TEXT, 0, 0, 1, 1, TEXT], [2, 2, TEXT, TEXT, TEXT, TEXT]]


def test_images_of_unequal_length_are_told_apart_by_the_text_between() -> None:
    visual = torch.tensor([[1, 1, 1, 0, 1]]).bool()
    assert pooling.number_images(visual, 2).tolist() == [[0, 0, 0, TEXT, 1]]


@pytest.mark.parametrize(
    ("row", "num_images"), [([1, 1, 1, 0], 2), ([1, 0, 1, 0], 1), ([1, 1, 1, 0, 1], 4 - 2 + 1), ([0, 0], 1)]
)
def test_images_that_cannot_be_told_apart_are_refused(row: list[int], num_images: int) -> None:
    with pytest.raises(PoolingUnsupportedError, match="images of equal length"):
        pooling.number_images(torch.tensor([row]).bool(), num_images)


@pytest.mark.parametrize("additive", [False, True])
def test_attention_mask_lets_a_window_see_what_its_members_see(additive: bool) -> None:
    images = torch.tensor([[TEXT, 0, 0, 0, 1, 1, TEXT], [TEXT] * 7])
    plan = pooling.plan_pooling(images, 2)
    mask = torch.ones(1, 1, 7, 7, dtype=torch.bool).tril()
    given = torch.where(mask, 0.0, torch.finfo(torch.float32).min) if additive else mask
    pooled = pooling.pool_attention_mask(given, plan, plan.last, plan.real)
    seen = pooled == 0 if additive else pooled
    for index, row in enumerate(images.tolist()):
        windows = reference_windows(row, 2)
        padding = plan.sizes.shape[1] - len(windows)
        for query in range(plan.sizes.shape[1]):
            for key in range(plan.sizes.shape[1]):
                if query < padding or key < padding:
                    expected = query == key
                else:
                    members = [(q, k) for q in windows[query - padding] for k in windows[key - padding]]
                    expected = any(bool(mask[0, 0, q, k]) for q, k in members)
                assert bool(seen[index, 0, query, key]) == expected


def test_labels_and_padding_mask_follow_the_last_member() -> None:
    plan = pooling.plan_pooling(torch.tensor([[TEXT, 0, 0, TEXT], [TEXT] * 4]), 2)
    labels = torch.tensor([[1, -100, -100, 2], [3, 4, 5, 6]])
    assert pooling.pool_labels(labels, plan).tolist() == [[-100, -100, -100, 2], [-100, 4, 5, 6]]
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert pooling.pool_padding_mask(mask, plan.last, plan.real).tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
