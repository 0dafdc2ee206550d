from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagetrain import ImageGroups, Sample, StepBatches, draw_questions
from stagetrain.errors import SampleError
from vlmpress.data import Record, Turn

A, B = Path("a.png"), Path("b.png")


def record(image: Path | None, answer: str, number: int = 0) -> Record:
    return Record(f"{image} {answer} {number}", image, (Turn("question", answer),))


def answers(sample: Sample) -> Counter[str]:
    return Counter(record.turns[0].answer for record in sample.records)


def test_records_are_grouped_by_image() -> None:
    records = [record(A, "x"), record(None, "p"), record(B, "y"), record(A, "z"), record(None, "q")]
    groups = ImageGroups(records)
    assert [sample.image for sample in groups] == [A, None, B, None]
    assert [len(sample.records) for sample in groups] == [2, 1, 1, 1]
    with pytest.raises(SampleError, match="at least one"):
        ImageGroups([])


@given(
    st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.integers(1, 10), st.integers(0, 3), st.integers(0, 9)
)
def test_drawn_questions_are_balanced(yes: int, no: int, other: int, limit: int, seed: int, epoch: int) -> None:
    records = [
        record(A, answer, n) for answer, count in (("yes", yes), ("No.", no), ("red", other)) for n in range(count)
    ]
    if not records:
        return
    sample = Sample(A, tuple(records))
    drawn = draw_questions(sample, limit, seed, epoch, 5)
    assert drawn == draw_questions(sample, limit, seed, epoch, 5)
    assert len(set(drawn.records)) == len(drawn.records) <= limit
    assert set(drawn.records) <= set(records)
    found = answers(drawn)
    if yes and no and limit > 1:
        assert found["yes"] == found["No."]
        possible = 2 * min(yes, no) + other
        assert len(drawn.records) >= min(limit, possible) - 1
    else:
        assert len(drawn.records) == min(limit, len(records))


def test_every_question_is_drawn_in_some_epoch() -> None:
    records = [*(record(A, "yes", n) for n in range(5)), record(A, "no"), record(A, "red")]
    seen = {one for epoch in range(60) for one in draw_questions(Sample(A, tuple(records)), 3, 0, epoch, 0).records}
    assert seen == set(records)


class Names:
    """A collator that gives the samples' numbers."""

    def draw(self, sample: Sample, epoch: int, index: int) -> Sample:
        return Sample(sample.image, (record(sample.image, f"{epoch} {index}"),))

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        numbers = [[int(part) for part in sample.records[0].turns[0].answer.split()] for sample in samples]
        return {"numbers": torch.tensor(numbers)}


def test_batches_are_a_pure_function_of_the_step() -> None:
    groups = ImageGroups([record(Path(f"{n}.png"), "x") for n in range(7)])
    batches = StepBatches(groups, Names(), 4, 14, seed=3)
    in_order = [batches[step]["numbers"] for step in range(14)]
    again = StepBatches(groups, Names(), 4, 14, seed=3)
    for step in (13, 0, 6, 6, 2, 9):
        assert torch.equal(again[step]["numbers"], in_order[step])
    drawn = torch.cat(in_order).tolist()
    for epoch in range(8):
        assert sorted(index for place, index in drawn[7 * epoch : 7 * epoch + 7] if place == epoch) == list(range(7))
    other = StepBatches(groups, Names(), 4, 14, seed=4)
    assert any(not torch.equal(other[step]["numbers"], in_order[step]) for step in range(14))
    assert drawn[:7] != [[0, index] for _, index in drawn[7:14]]
