import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagetrain.attaching import pooling
from stagetrain.compressors import DROPPED
from stagetrain.errors import PoolingUnsupportedError
from stagetrain.families import UnitGroup

TEXT = -1


def groups_of(rows: list[list[int]]) -> list[UnitGroup]:
    """Units [1 x L] of rows of unit numbers, TEXT for text; units of equal length in one group."""
    by_length: dict[int, list[tuple[int, list[int]]]] = {}
    for row, numbers in enumerate(rows):
        for number in sorted(set(numbers) - {TEXT}):
            columns = [place for place, value in enumerate(numbers) if value == number]
            by_length.setdefault(len(columns), []).append((row, columns))
    return [
        UnitGroup((1, length), torch.tensor([row for row, _ in units]), torch.tensor([columns for _, columns in units]))
        for length, units in by_length.items()
    ]


def draw_slots(group: UnitGroup, count: int, seed: int) -> torch.Tensor:
    """Random slots [U, L] that use all of 0 to count - 1, some tokens dropped."""
    num_units, num_tokens = group.columns.shape
    torch.manual_seed(seed)
    slots = torch.randint(DROPPED, count, (num_units, num_tokens))
    for unit in slots:
        unit[torch.randperm(num_tokens)[:count]] = torch.randperm(count)
    return slots


def reference_members(
    rows: list[list[int]], planned: list[tuple[UnitGroup, torch.Tensor, int]]
) -> list[list[list[int]]]:
    """Members of every pooled token of every row, in the order of their last ones, token by token."""
    members: list[list[list[int]]] = []
    for row, numbers in enumerate(rows):
        found = [[place] for place, number in enumerate(numbers) if number == TEXT]
        for group, slots, count in planned:
            for unit in range(len(group.rows)):
                if group.rows[unit] == row:
                    columns = group.columns[unit].tolist()
                    for slot in range(count):
                        found.append([columns[i] for i, value in enumerate(slots[unit].tolist()) if value == slot])
        members.append(sorted(found, key=max))
    return members


@st.composite
def unit_rows(draw: st.DrawFn) -> list[list[int]]:
    """Rows of equal length out of text and units of 1 to 7 tokens, some side by side, some with text among them."""
    rows, number = [], 0
    for _ in range(draw(st.integers(1, 3))):
        row: list[int] = []
        for kind, length in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 7)), min_size=1, max_size=5)):
            for _ in range(length):
                row += [TEXT] if kind == 0 else [number] if kind == 1 else [number, TEXT]
            number += 1
        rows.append(row)
    width = max(map(len, rows))
    return [[TEXT] * (width - len(row)) + row for row in rows]


@settings(max_examples=60, deadline=None)
@given(rows=unit_rows(), seed=st.integers(0, 1000), data=st.data())
def test_plan_pools_as_the_reference_does(rows: list[list[int]], seed: int, data: st.DataObject) -> None:
    groups = groups_of(rows)
    counts = [data.draw(st.integers(1, group.columns.shape[1])) for group in groups]
    planned = [(group, draw_slots(group, count, seed), count) for group, count in zip(groups, counts, strict=True)]
    shape = len(rows), len(rows[0])
    states, positions = torch.randn(*shape, 3), torch.randint(0, 5000, (3, *shape))
    plan = pooling.plan_pooling(states, planned)
    pooled, pooled_positions = pooling.pool_states(states, plan), pooling.pool_positions(positions, plan)
    given = {id(group): torch.randn(*group.rows.shape, count, 3) for group, _, count in planned}
    replaced = pooled
    for group, slots, _ in planned:
        replaced = pooling.replace_states(replaced, plan, group, slots, given[id(group)])
    for row, windows in enumerate(reference_members(rows, planned)):
        padding = plan.sizes.shape[1] - len(windows)
        assert plan.sizes[row].tolist() == [0] * padding + [len(window) for window in windows]
        assert plan.last[row, padding:].tolist() == [max(window) for window in windows]
        assert not pooled[row, :padding].any()
        for slot, window in enumerate(windows, padding):
            torch.testing.assert_close(pooled[row, slot], states[row, window].mean(0), rtol=1e-5, atol=1e-6)
            for component in range(3):
                assert pooled_positions[component, row, slot] == sum(positions[component, row, window].tolist()) // len(
                    window
                )
            if rows[row][window[0]] == TEXT:
                assert torch.equal(pooled[row, slot], states[row, window[0]])
                assert torch.equal(replaced[row, slot], states[row, window[0]])
    for group, slots, count in planned:
        for unit in range(len(group.rows)):
            for slot in range(count):
                member = group.columns[unit, slots[unit].tolist().index(slot)]
                place = plan.slots[group.rows[unit], member]
                assert torch.equal(replaced[group.rows[unit], place], given[id(group)][unit, slot])


@settings(max_examples=40, deadline=None)
@given(rows=unit_rows(), data=st.data())
def test_labels_of_text_are_all_there_in_their_order(rows: list[list[int]], data: st.DataObject) -> None:
    groups = groups_of(rows)
    counts = [(group, data.draw(st.integers(1, group.columns.shape[1]))) for group in groups]
    labels = torch.where(torch.tensor(rows) == TEXT, torch.arange(len(rows[0])) + 1, -100)
    labels[:, 0] = -100
    pooled = pooling.pool_labels(labels, counts)
    slots = [
        (group, torch.arange(group.columns.shape[1]).flip(0).clamp(max=count - 1), count) for group, count in counts
    ]
    plan = pooling.plan_pooling(
        labels, [(group, each.expand(len(group.rows), -1), count) for group, each, count in slots]
    )
    assert pooled.shape == plan.last.shape
    for before, after in zip(labels.tolist(), pooled.tolist(), strict=True):
        assert [label for label in before if label != -100] == [label for label in after if label != -100]


def test_slots_that_are_not_used_are_refused() -> None:
    group = UnitGroup((1, 4), torch.tensor([0]), torch.tensor([[1, 2, 3, 4]]))
    with pytest.raises(PoolingUnsupportedError, match="expected slots for 4 tokens in all, got 3"):
        pooling.plan_pooling(torch.zeros(1, 6), [(group, torch.tensor([[0, 0, DROPPED, 0]]), 2)])


def test_positions_beyond_float16_stay_exact() -> None:
    group = UnitGroup((1, 4), torch.tensor([0]), torch.tensor([[0, 1, 2, 3]]))
    plan = pooling.plan_pooling(torch.zeros(1, 4), [(group, torch.zeros(1, 4, dtype=torch.int64), 1)])
    assert pooling.pool_positions(torch.tensor([[100001, 100002, 100003, 100004]]), plan).tolist() == [[100002]]


def test_pooling_of_half_precision_sums_in_float32() -> None:
    group = UnitGroup((8, 8), torch.tensor([0]), torch.arange(64)[None])
    plan = pooling.plan_pooling(torch.zeros(1, 64), [(group, torch.zeros(1, 64, dtype=torch.int64), 1)])
    states = torch.full((1, 64, 1), 2000.0, dtype=torch.float16)
    assert pooling.pool_states(states, plan).tolist() == [[[2000.0]]]


def test_the_first_label_of_a_row_is_not_predicted_by_padding() -> None:
    group = UnitGroup((1, 2), torch.tensor([0]), torch.tensor([[1, 2]]))
    labels = torch.tensor([[1, -100, -100, 2], [3, 4, 5, 6]])
    assert pooling.pool_labels(labels, [(group, 1)]).tolist() == [[-100, -100, -100, 2], [-100, 4, 5, 6]]
