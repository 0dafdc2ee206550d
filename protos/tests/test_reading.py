"""Dataset files that are as they should be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmpress.data import Record, Turn, load_records, write_records

Write = Callable[[Any], Path]


def llava(*texts: str, **fields: Any) -> dict[str, Any]:
    speakers = ("human", "gpt")
    return {"conversations": [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)], **fields}


def test_llava_json(dataset: Write, images: Path) -> None:
    file = dataset([llava("<image>\nWhat is it?", "A cat.", "Red?", "no", id="7", image="a.png"), llava("2+2?", "4")])
    assert load_records(file) == [
        Record("7", images / "a.png", (Turn("What is it?", "A cat."), Turn("Red?", "no"))),
        Record("1", None, (Turn("2+2?", "4"),)),
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
    assert load_records(file) == [Record("0", images / "b.png", (Turn("is it?", "yes"),), "test")]


def test_images_come_from_the_given_folder(dataset: Write, images: Path, tmp_path: Path) -> None:
    file = dataset(({"image": "images/a.png", "question": "q", "answer": "a"},))
    assert load_records(file, tmp_path)[0].image == images / "a.png"


def test_a_null_is_as_a_missing_field(dataset: Write) -> None:
    entry = {"id": None, "image": None, "split": None, "question": "q", "answer": "a"}
    assert load_records(dataset((entry,))) == [Record("0", None, (Turn("q", "a"),))]


def test_line_separators_inside_text_end_no_line(dataset: Write) -> None:
    text = json.dumps({"question": "a\u2028b\x85c", "answer": "a"}, ensure_ascii=False)
    assert load_records(dataset(text))[0].turns[0].question == "a\u2028b\x85c"


words = st.text(st.characters(codec="utf-8"), min_size=1).map(str.strip).filter(lambda t: t and "<image>" not in t)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a.png", "b.png", None]), st.lists(st.builds(Turn, words, words), min_size=1)),
        min_size=1,
    ),
    st.sampled_from(["train", "test", None]),
)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[str | None, list[Turn]]], split: str | None
) -> None:
    folder = tmp_path_factory.mktemp("written")
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    records = [
        Record(f"r{number}", folder / name if name else None, tuple(turns), split)
        for number, (name, turns) in enumerate(samples)
    ]
    write_records(folder / "data.jsonl", records, folder)
    assert load_records(folder / "data.jsonl") == records


def test_written_lines_are_llava_records(tmp_path: Path) -> None:
    record = Record("x", tmp_path / "sub" / "a.png", (Turn("q", "a"), Turn("r", "b")), "train")
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
