import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce import PlaceholderError
from tokenreduce.placeholders import image_rows, kept_columns, placed_columns
from tokenreduce.pruning import Batch, needed_mask, prune

IMAGE, PAD_TOKEN = 3, 0


@st.composite
def batches(draw):
    """Rows of words and images of one to five placeholders, filled to one length; each image's sizes before, after."""
    rows = draw(st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=4))
    pieces = [[[IMAGE] * full if full else [5, 6] for full in row] for row in rows]
    ids = [sum(row, [1]) for row in pieces]
    longest = max(len(row) for row in ids)
    left = draw(st.booleans())
    fill = [[PAD_TOKEN] * (longest - len(row)) for row in ids]
    ids = torch.tensor([pad + row if left else row + pad for row, pad in zip(ids, fill, strict=True)])
    num_full = [full for row in rows for full in row if full]
    num_kept = [draw(st.integers(1, full)) for full in num_full]
    return ids, num_full, num_kept, [row for row, sizes in enumerate(rows) for full in sizes if full]


def slow_columns(ids, num_full, num_kept, pad_left, compact):
    images, rows = iter(zip(num_full, num_kept, strict=True)), []
    for row in ids.tolist():
        columns, seen, full, limit = [], 0, 0, 0
        for column, token in enumerate(row):
            if token == IMAGE:
                if seen == full:
                    seen, (full, limit) = 0, next(images)
                if seen < limit:
                    columns.append(column)
                seen += 1
            elif token != PAD_TOKEN or not compact:
                columns.append(column)
        rows.append(columns)
    longest = max(len(row) for row in rows)
    fill = [[-1] * (longest - len(row)) for row in rows]
    return [pad + row if pad_left else row + pad for row, pad in zip(rows, fill, strict=True)]


@settings(max_examples=120, deadline=None)
@given(batches(), st.booleans(), st.sampled_from(["none", "2-D", "4-D"]), st.integers(0, 2**31))
def test_equals_a_slow_loop(batch, pad_left, kind, seed):
    ids, num_full, num_kept, rows = batch
    num_rows, length = ids.shape
    assert image_rows(ids == IMAGE, num_full) == rows
    generator = torch.Generator().manual_seed(seed)
    # Any mask at all, bidirectional ones too; positions large enough to stay unique.
    masks = {
        "none": None,
        "2-D": (ids != PAD_TOKEN).long(),
        "4-D": torch.rand(num_rows, 1, length, length, generator=generator) < 0.5,
    }
    mask = masks[kind]
    visible = mask.bool() if kind == "2-D" else None
    columns = kept_columns(ids == IMAGE, num_full, num_kept, pad_left, visible)
    expected = slow_columns(ids, num_full, num_kept, pad_left, kind == "2-D")
    assert columns.tolist() == expected
    positions = torch.arange(length).repeat(num_rows, 1) + 1000
    labels = torch.randint(0, 9, ids.shape, generator=generator)
    types = (ids == IMAGE).int()
    before = Batch(input_ids=ids, attention_mask=mask, position_ids=positions, labels=labels, mm_token_type_ids=types)
    pruned = prune(before, columns, PAD_TOKEN)
    padded_left = any(row[0] == -1 for row in expected)
    for row, sources in enumerate(expected):
        hidden = [column for column in range(length) if kind == "2-D" and not mask[row, column]]
        dropped = [column for column in range(length) if column not in sources and column not in hidden]
        for new, old in enumerate(sources):
            got = (pruned.input_ids[row, new], pruned.labels[row, new], pruned.mm_token_type_ids[row, new])
            if old < 0:
                assert got == (PAD_TOKEN, -100, 0)
                follows = pruned.position_ids[row, new - 1] + 1 if new and not pad_left else 0
                assert pruned.position_ids[row, new] == follows
            else:
                assert got == (ids[row, old], labels[row, old], types[row, old])
                earlier = [c for c in dropped if c < old and (kind != "4-D" or mask[row, 0, old, c])]
                assert pruned.position_ids[row, new] == 1000 + old - len(earlier)
            if kind == "4-D":
                for key, source in enumerate(sources):
                    pad = -1 in (old, source)
                    assert pruned.attention_mask[row, 0, new, key] == (new == key if pad else mask[row, 0, old, source])
            elif kind == "2-D" or padded_left:
                assert pruned.attention_mask[row, new] == int(old >= 0)
            else:
                assert pruned.attention_mask is None


@settings(max_examples=60, deadline=None)
@given(batches(), st.booleans(), st.integers(0, 2**31))
def test_coordinates_are_those_of_the_places(batch, pad_left, seed):
    ids, num_full, num_kept, _ = batch
    generator = torch.Generator().manual_seed(seed)
    columns = kept_columns(ids == IMAGE, num_full, num_kept, pad_left)
    chosen = [
        torch.randperm(full, generator=generator)[:kept].sort().values
        for full, kept in zip(num_full, num_kept, strict=True)
    ]
    places = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.long)
    placed = placed_columns(ids == IMAGE, columns, num_full, num_kept, places)
    text = torch.arange(ids.shape[1]).repeat(len(ids), 1)
    positions = torch.randint(0, 99, (3, *ids.shape), generator=generator)
    pruned = prune(Batch(input_ids=ids, position_ids=torch.cat([text[None], positions])), columns, PAD_TOKEN, placed)
    alone = prune(Batch(input_ids=ids, position_ids=text), columns, PAD_TOKEN).position_ids
    assert torch.equal(pruned.position_ids[0], alone)
    starts = [(row, column) for row, column in (ids == IMAGE).nonzero().tolist()]
    offset, wanted = 0, {}
    for full, kept in zip(num_full, chosen, strict=True):
        for rank, place in enumerate(kept.tolist()):
            wanted[starts[offset + rank]] = starts[offset + place]
        offset += full
    for row, sources in enumerate(columns.tolist()):
        for new, old in enumerate(sources):
            column = wanted.get((row, old), (row, old))[1]
            want = [0, 0, 0] if old < 0 else positions[:, row, column].tolist()
            assert pruned.position_ids[1:, row, new].tolist() == want


def test_documents_of_a_row_keep_their_own_positions():
    ids = torch.tensor([[1, 3, 3, 3, 3, 5, 1, 3, 3, 3, 3, 6, 7]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6]])
    columns = kept_columns(ids == IMAGE, [4, 4], [1, 2])
    pruned = prune(Batch(input_ids=ids, position_ids=positions), columns, PAD_TOKEN)
    assert pruned.input_ids.tolist() == [[1, 3, 5, 1, 3, 3, 6, 7]]
    assert pruned.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]


def test_one_mask_and_one_row_of_positions_for_all():
    ids = torch.tensor([[1, 3, 3, 3, 3, 5], [1, 3, 3, 3, 3, 6]])
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    columns = kept_columns(ids == IMAGE, [4, 4], [1, 4])
    pruned = prune(Batch(input_ids=ids, attention_mask=mask, position_ids=torch.arange(6)[None]), columns, PAD_TOKEN)
    assert pruned.position_ids.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert torch.equal(pruned.attention_mask[1], mask[0])
    assert pruned.attention_mask[0, 0].int().tolist()[2:4] == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]


def test_a_mask_that_hides_nothing_goes_unless_it_tells_documents_apart():
    full, counting = torch.ones(1, 4), torch.arange(4)[None]
    assert needed_mask(full, None) is None
    assert needed_mask(full, counting) is None
    assert needed_mask(full, counting.expand(3, 1, 4)) is None
    assert needed_mask(full, torch.tensor([[0, 1, 0, 1]])) is full
    for mask in (torch.tensor([[1, 1, 1, 0]]), torch.ones(1, 1, 4, 4, dtype=torch.bool)):
        assert needed_mask(mask, counting) is mask


@pytest.mark.parametrize(
    ("num_full", "message"),
    [
        ([4], r"got rows of \[4, 4\] \(row 1: expected none, got 4\)"),
        ([4, 4, 4], r"expected 4 placeholders for each of 3 images, .* \(none is left for image 2\)"),
        ([], r"\(row 0: expected none, got 4\)"),
        ([3, 5], r"expected \[3, 5\] placeholders .* \(row 0: expected 8 for images \[0, 1\], got 4\)"),
    ],
)
def test_wrong_counts_are_refused(num_full, message):
    ids = torch.tensor([[3, 3, 3, 3, 1], [1, 3, 3, 3, 3]])
    with pytest.raises(PlaceholderError, match=message):
        image_rows(ids == IMAGE, num_full)
