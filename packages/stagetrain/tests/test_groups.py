from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagetrain import ImageGroups, Sample, SingleRecords, draw_questions
from stagetrain.errors import SampleError
from stagetrain.samples.groups import measure
from vlmpress.data import Record, RecordFile, Turn, open_records, write_records

A, B = Path("a.png"), Path("b.png")


def record(image: Path | None, answer: str, number: int = 0) -> Record:
    images = () if image is None else (image,)
    return Record(f"{image} {answer} {number}", images, (Turn("question", answer),))


def answers(sample: Sample) -> Counter[str]:
    return Counter(record.turns[0].answer for record in sample.records)


def test_records_are_grouped_by_image() -> None:
    pair = Record("pair", (A, B), (Turn("question", "w"),))
    records = [record(A, "x"), record(None, "p"), record(B, "y"), pair, record(A, "z"), record(None, "q"), pair]
    groups = ImageGroups(records)
    assert [sample.images for sample in groups] == [(A,), (), (B,), (A, B), ()]
    assert [len(sample.records) for sample in groups] == [2, 1, 1, 2, 1]
    assert [measure(groups, index) for index in range(5)] == [(18, 1), (9, 0), (9, 1), (18, 2), (9, 0)]
    with pytest.raises(SampleError, match="at least one"):
        ImageGroups([])


def test_single_records_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    records = [record(tmp_path / "a.png", "x" * number) if number % 2 else record(None, "p") for number in range(1, 7)]
    write_records(tmp_path / "data.jsonl", records, tmp_path)
    opened = open_records(tmp_path / "data.jsonl")
    assert isinstance(opened, RecordFile)
    lazy, loaded = SingleRecords(opened), SingleRecords(records)
    assert list(lazy) == list(loaded) == [Sample(one.images, (one,)) for one in records]
    (tmp_path / "data.jsonl").unlink()
    assert [measure(lazy, index) for index in range(6)] == [measure(list(loaded), index) for index in range(6)]
    with pytest.raises(SampleError, match="at least one"):
        SingleRecords([])


@given(
    st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.integers(1, 10), st.integers(0, 3), st.integers(0, 9)
)
def test_drawn_questions_are_balanced(yes: int, no: int, other: int, limit: int, seed: int, epoch: int) -> None:
    records = [
        record(A, answer, n) for answer, count in (("yes", yes), ("No.", no), ("red", other)) for n in range(count)
    ]
    if not records:
        return
    sample = Sample((A,), tuple(records))
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
    seen = {one for epoch in range(60) for one in draw_questions(Sample((A,), tuple(records)), 3, 0, epoch, 0).records}
    assert seen == set(records)
