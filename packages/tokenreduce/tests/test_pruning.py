import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce import PlaceholderError
from tokenreduce.pruning import Batch, kept_columns, prune

IMAGE, PAD_TOKEN, NUM_FULL = 3, 0, 4


@st.composite
def batches(draw):
    """Rows of words and images of four placeholders, cut or filled to one length; and how many each image keeps."""
    rows = draw(st.lists(st.lists(st.booleans(), max_size=4), min_size=1, max_size=4))
    pieces = [[[IMAGE] * NUM_FULL if image else [5, 6] for image in row] for row in rows]
    rows = [sum(row, [1]) for row in pieces]
    longest = max(len(row) for row in rows)
    left = draw(st.booleans())
    fill = [[PAD_TOKEN] * (longest - len(row)) for row in rows]
    ids = torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, fill, strict=True)])
    num_images = int((ids == IMAGE).sum()) // NUM_FULL
    kept = draw(st.lists(st.integers(1, NUM_FULL), min_size=num_images, max_size=num_images))
    return ids, kept


def slow_columns(ids, kept, pad_left):
    counts, rows = iter(kept), []
    for row in ids.tolist():
        columns, seen, limit = [], 0, 0
        for column, token in enumerate(row):
            if token == IMAGE:
                limit = next(counts) if seen == 0 else limit
                if seen < limit:
                    columns.append(column)
                seen = (seen + 1) % NUM_FULL
            else:
                columns.append(column)
        rows.append(columns)
    longest = max(len(row) for row in rows)
    fill = [[-1] * (longest - len(row)) for row in rows]
    return [pad + row if pad_left else row + pad for row, pad in zip(rows, fill, strict=True)]


@settings(max_examples=80, deadline=None)
@given(batches(), st.booleans(), st.sampled_from(["none", "2-D", "4-D"]), st.integers(0, 2**31))
def test_equals_a_slow_loop(batch, pad_left, kind, seed):
    ids, kept = batch
    num_rows, length = ids.shape
    columns = kept_columns(ids == IMAGE, NUM_FULL, kept, pad_left)
    expected = slow_columns(ids, kept, pad_left)
    assert columns.tolist() == expected
    generator = torch.Generator().manual_seed(seed)
    # Any mask at all, bidirectional ones too; positions large enough to stay unique.
    masks = {
        "none": None,
        "2-D": (ids != PAD_TOKEN).long(),
        "4-D": torch.rand(num_rows, 1, length, length, generator=generator) < 0.5,
    }
    mask = masks[kind]
    positions = torch.arange(length).repeat(num_rows, 1) + 1000
    labels = torch.randint(0, 9, ids.shape, generator=generator)
    pruned = prune(Batch(input_ids=ids, attention_mask=mask, position_ids=positions, labels=labels), columns, PAD_TOKEN)
    padded = any(-1 in row for row in expected)
    for row, sources in enumerate(expected):
        dropped = [column for column in range(length) if column not in sources]
        for new, old in enumerate(sources):
            if old < 0:
                assert (pruned.input_ids[row, new], pruned.labels[row, new]) == (PAD_TOKEN, -100)
                assert pruned.position_ids[row, new] == 0
            else:
                assert (pruned.input_ids[row, new], pruned.labels[row, new]) == (ids[row, old], labels[row, old])
                before = [c for c in dropped if c < old and (kind != "4-D" or mask[row, 0, old, c])]
                assert pruned.position_ids[row, new] == 1000 + old - len(before)
            if kind == "4-D":
                for key, source in enumerate(sources):
                    pad = -1 in (old, source)
                    assert pruned.attention_mask[row, 0, new, key] == (new == key if pad else mask[row, 0, old, source])
            elif kind == "2-D":
                assert pruned.attention_mask[row, new] == (0 if old < 0 else mask[row, old])
            elif padded:
                assert pruned.attention_mask[row, new] == int(old >= 0)
            else:
                assert pruned.attention_mask is None


def test_documents_of_a_row_keep_their_own_positions():
    ids = torch.tensor([[1, 3, 3, 3, 3, 5, 1, 3, 3, 3, 3, 6, 7]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6]])
    columns = kept_columns(ids == IMAGE, NUM_FULL, [1, 2])
    pruned = prune(Batch(input_ids=ids, position_ids=positions), columns, PAD_TOKEN)
    assert pruned.input_ids.tolist() == [[1, 3, 5, 1, 3, 3, 6, 7]]
    assert pruned.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]


def test_one_mask_and_one_row_of_positions_for_all():
    ids = torch.tensor([[1, 3, 3, 3, 3, 5], [1, 3, 3, 3, 3, 6]])
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    columns = kept_columns(ids == IMAGE, NUM_FULL, [1, 4])
    pruned = prune(Batch(input_ids=ids, attention_mask=mask, position_ids=torch.arange(6)[None]), columns, PAD_TOKEN)
    assert pruned.position_ids.tolist() == [[0, 1, 2, 0, 0, 0], [0, 1, 2, 3, 4, 5]]
    assert torch.equal(pruned.attention_mask[1], mask[0])
    assert pruned.attention_mask[0, 0].int().tolist()[2:4] == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]


@pytest.mark.parametrize("kept", [[1], [1, 1, 1], []])
def test_wrong_counts_are_refused(kept):
    ids = torch.tensor([[3, 3, 3, 3, 1], [1, 3, 3, 3, 3]])
    with pytest.raises(PlaceholderError, match=r"got rows of \[4, 4\]"):
        kept_columns(ids == IMAGE, NUM_FULL, kept)
