"""Rows of different length in one tensor against a plain dictionary of rows."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.serving.ragged import RaggedRows


@pytest.mark.parametrize(("axis", "shape"), [(1, ()), (2, (3,)), (2, (2, 5))])
@given(seed=st.integers(0, 2**32))
def test_rows_come_grow_and_go(axis, shape, seed):
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    kept, known = RaggedRows(axis), []

    def some(num_slots):
        before = shape[: axis - 1]
        return torch.randn(*before, num_slots, *shape[axis - 1 :], generator=generator)

    for _ in range(30):
        action = draw.choice(["put", "clear", "write", "write", "leave", "leave"])
        if action == "put":
            lengths = draw.choices([0, 1, 3, 17, 40], k=draw.choice([1, 2, 5]))
            whole = torch.stack([some(max(lengths) + 2) for _ in lengths])
            # Padding may be anything, and must not be kept.
            whole[0].narrow(axis - 1, lengths[0], 1).fill_(torch.nan)
            kept.put(len(known), whole, lengths)
            known += [row.narrow(axis - 1, 0, length) for row, length in zip(whole, lengths, strict=True)]
        elif action == "clear":
            kept.put(len(known), some(1)[None], [1])
            kept.clear(len(known), 2)
            known += [some(0), some(0)]
        elif action == "write" and known:
            lengths = torch.tensor([row.shape[axis - 1] for row in known])
            kept.reserve(len(known), int(lengths.max()) + 1)
            new = torch.stack([some(1) for _ in known])
            kept.write(lengths, new)
            known = [torch.cat((row, new[index]), dim=axis - 1) for index, row in enumerate(known)]
        elif known:
            gone = draw.randrange(len(known))
            last = known.pop()
            if gone < len(known):
                known[gone] = last
                kept.move(len(known), gone)
            kept.shrink(len(known), max((row.shape[axis - 1] for row in known), default=0))
        check(kept, known, axis)


def check(kept, known, axis):
    if not known:
        assert kept.num_bytes == 0 or kept.view(0, 0).numel() == 0
        return
    longest = max(row.shape[axis - 1] for row in known)
    whole = kept.view(len(known), longest)
    for index, row in enumerate(known):
        num_slots = row.shape[axis - 1]
        assert torch.equal(whole[index].narrow(axis - 1, 0, num_slots), row)
        assert not whole[index].narrow(axis - 1, num_slots, longest - num_slots).any(), "leftovers of an earlier row"
    num_each = torch.tensor(known[0].shape[: axis - 1] + known[0].shape[axis:]).prod()
    room = kept.num_bytes / (4 * int(num_each))
    assert room <= 4 * len(known) * 2 * (longest + 32), "more than four times the rows, twice the slots"
