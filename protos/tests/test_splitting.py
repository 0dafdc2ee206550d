"""Training and test sets, and what can be said without looking at an image."""

from pathlib import Path

import pytest

from vlmpress.data import DataError, QuestionPrior, Record, Turn, load_records, question_type, split_records

EASY_VQA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "easy_vqa"


def sample(number: int, image: str | None, split: str | None = None) -> Record:
    return Record(str(number), (Path(image),) if image else (), (Turn("q", "a"),), split)


def test_whole_images_are_drawn() -> None:
    records = [sample(number, f"{number // 5}.png") for number in range(500)]
    train, test = split_records(records, seed=0)
    assert len(test) == 50
    assert len(train) == 450
    assert not {record.image for record in train} & {record.image for record in test}
    assert {record.split for record in train} == {"train"}
    assert {record.split for record in test} == {"test"}
    assert sorted(int(record.id) for record in train + test) == list(range(500))


def test_the_seed_and_nothing_else_decides() -> None:
    records = [sample(number, f"z/{number // 2}.png") for number in range(80)]
    records += [sample(number, None) for number in range(80, 120)]
    first = {record.id for record in split_records(records, seed=3)[1]}
    assert {record.id for record in split_records(records[::-1], seed=3)[1]} == first
    assert {record.id for record in split_records(records, seed=4)[1]} != first
    moved = [sample(int(r.id), f"/abs/{r.image}" if r.image else None) for r in records]
    assert {record.id for record in split_records(moved, seed=3)[1]} == first


def test_the_files_own_split_is_kept() -> None:
    records = [sample(0, "a", "test"), sample(1, "a", "train"), sample(2, None, "train")]
    train, test = split_records(records, seed=0)
    assert [record.id for record in train] == ["1", "2"]
    assert [record.id for record in test] == ["0"]


def test_an_empty_side_is_refused() -> None:
    for records in ([], [sample(0, "a"), sample(1, "a")], [sample(0, "a", "train")], [sample(0, "a", "test")]):
        with pytest.raises(DataError, match="expected training and test records, got"):
            split_records(records, seed=0)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("yes", "yes/no"),
        (" No. ", "yes/no"),
        ("yes it is", "other"),
        ("3", "number"),
        ("-2.5", "number"),
        ("three", "other"),
        ("3 cats", "other"),
        ("", "other"),
    ],
)
def test_question_types(answer: str, expected: str) -> None:
    assert question_type(answer) == expected


def test_prior_takes_the_commonest_answer_to_each_question() -> None:
    answers = [("color?", "Red"), ("color?", "blue"), ("Color?", "red"), ("is it?", "no"), ("is it?", "no")]
    prior = QuestionPrior.fit(Record("0", (), (Turn(*turn),)) for turn in answers)
    assert prior == QuestionPrior({"color?": "red", "is it?": "no"}, "red")
    asked = (Turn("COLOR?", "red"), Turn("is it?", "yes"), Turn("is it?", "no"), Turn("unseen?", "Red"))
    assert prior.accuracy([Record("1", (), asked)]) == {"all": 0.75, "other": 1.0, "yes/no": 0.5}


def test_prior_needs_a_record() -> None:
    with pytest.raises(DataError, match="expected at least one training record"):
        QuestionPrior.fit([])


@pytest.mark.skipif(not EASY_VQA.exists(), reason="no easy-VQA beside the repository")
def test_easy_vqa_without_looking() -> None:
    train, test = split_records(load_records(EASY_VQA / "vqa.jsonl"), seed=0)
    assert (len(train), len(test)) == (38575, 9673)
    accuracy = QuestionPrior.fit(train).accuracy(test)
    assert round(accuracy["all"], 3) == 0.670
    assert round(accuracy["yes/no"], 3) == 0.825


def test_records_that_share_an_image_stay_together() -> None:
    pairs = [(number, number + 1) for number in range(0, 40, 2)] + [(1, 2), (11, 12)]
    records = [
        Record(str(n), (Path(f"{a}.png"), Path(f"{b}.png")), (Turn("q", "a"),)) for n, (a, b) in enumerate(pairs)
    ]
    for seed in range(20):
        train, test = split_records(records, seed, 0.3)
        seen = [{image for record in part for image in record.images} for part in (train, test)]
        assert not seen[0] & seen[1]
        assert {r.id for r in split_records(records[::-1], seed, 0.3)[1]} == {r.id for r in test}
