"""Dataset files that are as they should be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmpress.data import IMAGE_MARK, DataError, Record, Turn, chat_messages, load_records, open_records, write_records

Write = Callable[[Any], Path]


def llava(*texts: str, **fields: Any) -> dict[str, Any]:
    speakers = ("human", "gpt")
    return {"conversations": [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)], **fields}


def test_llava_json(dataset: Write, images: Path) -> None:
    file = dataset([llava("<image>\nWhat is it?", "A cat.", "Red?", "no", id="7", image="a.png"), llava("2+2?", "4")])
    assert load_records(file) == [
        Record("7", (images / "a.png",), (Turn("What is it?", "A cat."), Turn("Red?", "no"))),
        Record("1", (), (Turn("2+2?", "4"),)),
    ]


def test_llava_jsonl_with_splits_and_blank_lines(dataset: Write, images: Path) -> None:
    lines = [
        json.dumps(llava("q\n<image>", "a", image="a.png", split="train")),
        json.dumps(llava("q", "a", split="test", id=12)),
    ]
    for text in ("\n\n".join(lines), "\r\n".join(lines) + "\r\n", "\ufeff" + "\n".join(lines)):
        records = load_records(dataset(text))
        assert [record.split for record in records] == ["train", "test"]
        assert [record.id for record in records] == ["0", "12"]
        assert [record.turns for record in records] == [(Turn("q", "a"),)] * 2


def test_vqa_jsonl(dataset: Write, images: Path) -> None:
    file = dataset(({"split": "test", "image": "b.png", "question": " is it? ", "answer": "yes", "type": "presence"},))
    assert load_records(file) == [Record("0", (images / "b.png",), (Turn("is it?", "yes"),), "test")]


def test_images_come_from_the_given_folder(dataset: Write, images: Path, tmp_path: Path) -> None:
    file = dataset(({"image": "images/a.png", "question": "q", "answer": "a"},))
    assert load_records(file, tmp_path)[0].image == images / "a.png"


def test_a_null_is_as_a_missing_field(dataset: Write) -> None:
    entry = {"id": None, "image": None, "split": None, "question": "q", "answer": "a"}
    assert load_records(dataset((entry,))) == [Record("0", (), (Turn("q", "a"),))]


def test_line_separators_inside_text_end_no_line(dataset: Write) -> None:
    text = json.dumps({"question": "a\u2028b\x85c", "answer": "a"}, ensure_ascii=False)
    assert load_records(dataset(text))[0].turns[0].question == "a\u2028b\x85c"


def ask(question: str, *names: str) -> dict[str, Any]:
    return {"image": list(names), "question": question, "answer": "a"}


@pytest.mark.parametrize(
    ("question", "num_images", "expected"),
    [
        ("<image>\n<image> q", 2, "q"),
        (" q\n<image><image>\n", 2, "q"),
        ("q", 2, "q"),
        ("<image> is it <image>?", 2, "<image> is it <image>?"),
        ("<image> q <image>", 2, "<image> q <image>"),
        ("look <image> here", 1, "look <image> here"),
        ("<ima<image>ge> q", 1, "<ima<image>ge> q"),
        ("<image><ima", 1, "<ima"),
    ],
)
def test_marks_that_place_images_stay(
    dataset: Write, images: Path, question: str, num_images: int, expected: str
) -> None:
    names = ["a.png", "b.png"][:num_images]
    (record,) = load_records(dataset((ask(question, *names),)))
    assert record.images == tuple(images / name for name in names)
    assert record.turns == (Turn(expected, "a"),)


def test_marks_of_later_questions_stay(dataset: Write) -> None:
    file = dataset((llava("<image> q", "a", "and <image>", "b", image=["a.png", "b.png"]),))
    assert load_records(file)[0].turns == (Turn("<image> q", "a"), Turn("and <image>", "b"))


def test_messages_place_images_where_they_belong() -> None:
    def contents(turns: tuple[Turn, ...], num_images: int, last: bool = False) -> list[list[str]]:
        messages = chat_messages(turns, num_images, images_last=last)
        assert [message["role"] for message in messages] == ["user", "assistant"] * len(turns)
        return [[part.get("text", "*") for part in message["content"]] for message in messages]

    free = (Turn("q", "a"), Turn("r", "b"))
    assert contents(free, 0) == [["q"], ["a"], ["r"], ["b"]]
    assert contents(free, 2) == [["*", "*", "q"], ["a"], ["r"], ["b"]]
    assert contents(free, 1, True) == [["q", "*"], ["a"], ["r"], ["b"]]
    fixed = (Turn("<image> q", "a"), Turn("r <image>?", "b"))
    assert contents(fixed, 2, True) == [["*", " q"], ["a"], ["r ", "*", "?"], ["b"]]


def test_a_video_is_its_frames_evenly_thinned(dataset: Write, images: Path) -> None:
    (images / "clip").mkdir()
    for number in range(12):
        (images / "clip" / f"frame{number}.PNG").touch()
    (images / "clip" / "notes.txt").touch()
    lines = tuple({"video": "clip", "question": text, "answer": "a"} for text in ("<video>\nq", "q", "in <video> q"))
    first, none, fixed = load_records(dataset(lines), max_frames=5)
    assert [path.name for path in first.images] == [f"frame{number}.PNG" for number in (1, 3, 6, 8, 10)]
    assert first.turns == none.turns == (Turn("q", "a"),)
    assert fixed.turns == (Turn("in " + "<image>" * 5 + " q", "a"),)
    assert [path.name for path in load_records(dataset(lines), max_frames=20)[0].images] == [
        f"frame{number}.PNG" for number in range(12)
    ]


def test_a_split_is_chosen(dataset: Write) -> None:
    lines = [llava("q", "a", split="test"), llava("r", "a", split="train"), llava("s", "a", split="train")]
    for content in (lines, tuple(lines)):
        file = dataset(content)
        for read in (load_records, open_records):
            assert [record.id for record in read(file, split="train")] == ["1", "2"]
            assert [record.id for record in read(file, split="test")] == ["0"]
    plain = dataset((llava("q", "a"),))
    assert len(load_records(plain, split="train")) == 1
    for read in (load_records, open_records):
        with pytest.raises(DataError, match="expected at least one record of split test, got none"):
            read(plain, split="test")


words = st.text(st.characters(codec="utf-8"), min_size=1).map(str.strip).filter(lambda t: t and "<" not in t)


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["a.png", "b.png"]), max_size=3),
            st.lists(st.builds(Turn, words, words), min_size=1),
            st.booleans(),
        ),
        min_size=1,
    ),
    st.sampled_from(["train", "test", None]),
)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[list[str], list[Turn], bool]], split: str | None
) -> None:
    folder = tmp_path_factory.mktemp("written")
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    records = [
        Record(f"r{number}", tuple(folder / name for name in names), placed(turns, len(names), fixed), split)
        for number, (names, turns, fixed) in enumerate(samples)
    ]
    write_records(folder / "data.jsonl", records, folder)
    assert load_records(folder / "data.jsonl") == records
    assert list(open_records(folder / "data.jsonl")) == records


def placed(turns: list[Turn], num_images: int, fixed: bool) -> tuple[Turn, ...]:
    """Turns whose last question says where the images go, or none does."""
    if not fixed or not num_images:
        return tuple(turns)
    last = turns[-1]
    return (*turns[:-1], Turn(f"{last.question} {IMAGE_MARK * num_images} {last.question}", last.answer))


def test_written_lines_are_llava_records(tmp_path: Path) -> None:
    record = Record("x", (tmp_path / "sub" / "a.png",), (Turn("q", "a"), Turn("r", "b")), "train")
    write_records(tmp_path / "out.jsonl", [record], tmp_path)
    messages = [("human", "<image>\nq"), ("gpt", "a"), ("human", "r"), ("gpt", "b")]
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "id": "x",
        "image": "sub/a.png",
        "split": "train",
        "conversations": [{"from": speaker, "value": value} for speaker, value in messages],
    }


COCO = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "coco_cc"


@pytest.mark.skipif(not COCO.exists(), reason="no COCO sample beside the repository")
def test_photographs_with_conversations() -> None:
    conversations = load_records(COCO / "llava_conversations.json")
    assert len({record.image for record in conversations}) == 13
    assert max(len(record.turns) for record in conversations) > 1
    questions = load_records(COCO / "vqa.jsonl")
    assert {record.image for record in questions} == {record.image for record in conversations}
