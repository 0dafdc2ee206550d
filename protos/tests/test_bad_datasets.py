"""Dataset files that are not as they should be: one line that says where, what was expected and what came."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlmpress.data import DataError, Record, Turn, load_records, open_records, write_records

Write = Callable[[Any], Path]
QA = {"question": "q", "answer": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


def message_of(file: Path, images: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        load_records(file, images)
    message = str(caught.value)
    # What reads by the line says the same.
    with pytest.raises(DataError) as lazily:
        open_records(file, images)
    assert str(lazily.value) == message
    assert "\n" not in message
    assert len(message) < 1000 + len(str(file))
    return message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "expected at least one record, got none"),
        ("\n \n", "expected at least one record, got none"),
        ("[]", "expected at least one record, got none"),
        ("[1, 2", "expected a JSON list, got"),
        ("[" * 100_000, "expected a JSON list, got"),
        ('[{"question": "q"}] tail', "expected a JSON list, got"),
        (json.dumps(QA) + "\nnot json\n", "line 2: expected a JSON object, got"),
        ('{"a":' * 100_000, "line 1: expected a JSON object, got"),
        ('{"question": "q", "answer": "a", "id": ' + "1" * 5000 + "}", "line 1: expected a JSON object, got"),
        ("NaN", "line 1: expected an object, got float"),
        ("null", "line 1: expected an object, got NoneType"),
        ([5], "record 0: expected an object, got int"),
        ([QA, [QA]], "record 1: expected an object, got list"),
        (({},), "line 1: expected conversations, or question and answer, got []"),
        (({"text": "t"},), "line 1: expected conversations, or question and answer, got ['text']"),
        (({"question": "q"},), "line 1: answer: expected text, got None"),
        (({"question": "q", "answer": 3},), "line 1: answer: expected text, got 3"),
        (({"question": " ", "answer": "a"},), "line 1: question: expected text, got ' '"),
        (({"question": "<image>", "answer": "a"},), "line 1: question: expected text, got '<image>'"),
        (({"question": "<image> q", "answer": "a"},), "line 1: expected as many <image> as images (0) or none, got 1"),
        (({"question": "<video> q", "answer": "a"},), "expected no <video> where no video is given, got one"),
        (({"question": "q", "answer": "a <image>", "image": "a.png"},), "expected no <image> in an answer, got 'a <im"),
        (({"question": "<image> q", "answer": "a", "image": ["a.png", "b.png"]},), "as images (2) or none, got 1"),
        (({**QA, "video": "none"},), "line 1: video: expected a folder of frames, got none at "),
        (({**QA, "video": "a.png"},), "line 1: video: expected a folder of frames, got none at "),
        (({**QA, "video": 3},), "line 1: video: expected text, got 3"),
        (({**QA, "video": "empty"},), "video: expected images (.bmp, .jpeg, .jpg, .png, .webp) in the folder "),
        (({**QA, "video": "empty", "image": "a.png"},), "line 1: expected either image or video, got both"),
        (({"question": "<video> <video> q", "answer": "a", "video": "clip"},), "one <video> or none, got 2 marks"),
        (({**QA, "question": "\ud800"},), "line 1: question: expected Unicode text, got half of a surrogate pair"),
        (({**QA, "id": 1.5},), "line 1: id: expected text or an integer, got 1.5"),
        (({**QA, "id": True},), "line 1: id: expected text or an integer, got True"),
        (({**QA, "split": "val"},), "line 1: split: expected one of train, test, got 'val'"),
        (({**QA, "split": ["train"]},), "line 1: split: expected one of train, test, got ['train']"),
        ((QA, {**QA, "split": "test"}), "expected a split on every record or on none"),
        (({**QA, "image": 5},), "line 1: image: expected text, got 5"),
        (({**QA, "image": ""},), "line 1: image: expected text, got ''"),
        (({**QA, "image": ["a.png", 5]},), "line 1: image[1]: expected text, got 5"),
        (({**QA, "image": ["a.png", "none.png"]},), "line 1: image[1]: expected a file, got none at "),
        (({**QA, "image": {}},), "line 1: image: expected text, got {}"),
        (({**QA, "image": "none.png"},), "line 1: image: expected a file, got none at "),
        (({**QA, "image": "."},), "line 1: image: expected a file, got none at "),
        (({**QA, "image": "a\0b"},), "line 1: image: expected a file, got none at "),
        (({**QA, "image": "\udc00.png"},), "line 1: image: expected Unicode text, got half of a surrogate pair"),
        (({"conversations": {}},), "line 1: conversations: expected pairs of human and gpt messages, got dict"),
        (({"conversations": None},), "line 1: conversations: expected pairs of human and gpt messages, got NoneType"),
        (({"conversations": []},), "line 1: conversations: expected pairs of human and gpt messages, got 0 messages"),
        (({"conversations": [HUMAN]},), "conversations: expected pairs of human and gpt messages, got 1 messages"),
        (({"conversations": [GPT, HUMAN]},), "conversations[0]: expected from 'human', got 'gpt'"),
        (({"conversations": [HUMAN, HUMAN]},), "conversations[1]: expected from 'gpt', got 'human'"),
        (({"conversations": [HUMAN, {"from": "assistant"}]},), "expected from 'gpt', got 'assistant'"),
        (({"conversations": ["q", "a"]},), "conversations[0]: expected from 'human', got 'str'"),
        (({"conversations": [HUMAN, {"from": "gpt"}]},), "conversations[1].value: expected text, got None"),
        (({"conversations": [HUMAN, {"from": "gpt", "value": {}}]},), "conversations[1].value: expected text, got {}"),
        (({**QA, "answer": ["x" * 1000] * 1000},), "line 1: answer: expected text, got ["),
    ],
)
def test_message(dataset: Write, content: Any, expected: str) -> None:
    file = dataset(content)
    (file.parent / "empty").mkdir()
    (file.parent / "clip").mkdir()
    (file.parent / "clip" / "0.png").touch()
    message = message_of(file)
    assert message.startswith(str(file))
    assert expected in message


def test_one_mark_for_one_image(dataset: Write) -> None:
    entry = {"image": "a.png", "question": "<image> <image> q", "answer": "a"}
    assert "expected as many <image> as images (1) or none, got 2" in message_of(dataset((entry,)))


def test_a_name_no_file_system_takes(dataset: Write) -> None:
    with pytest.raises(DataError, match="image: expected a file"):
        load_records(dataset(({**QA, "image": "x" * 5000},)))


def test_unreadable_files(tmp_path: Path) -> None:
    assert "expected a readable dataset file, got No such file" in message_of(tmp_path / "missing.json")
    assert "expected a readable dataset file, got Is a directory" in message_of(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'[{"question": "gr\xfc\xdfe"}]')
    assert "expected UTF-8 text, got a bad byte at offset 17" in message_of(tmp_path / "latin.json")


def test_missing_folder_of_images(dataset: Write, tmp_path: Path) -> None:
    assert message_of(dataset((QA,)), tmp_path / "none") == f"{tmp_path / 'none'}: expected a folder of images"


def test_an_image_outside_the_folder_is_not_written(tmp_path: Path) -> None:
    record = Record("x", (Path("/elsewhere/a.png"),), (Turn("q", "a"),))
    with pytest.raises(DataError, match=r"record x: image: expected a path below .*, got /elsewhere/a\.png"):
        write_records(tmp_path / "out.jsonl", [record], tmp_path)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("a.png")
known = st.sampled_from(["id", "image", "video", "split", "question", "answer", "conversations", "from", "value"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(known | st.text(max_size=4), inner, max_size=6),
    max_leaves=12,
)
speakers = st.sampled_from(["human", "gpt"]) | scalars
messages = st.fixed_dictionaries({}, optional={"from": speakers, "value": scalars | values})
entries = values | st.fixed_dictionaries(
    {},
    optional={
        "id": values,
        "image": scalars | st.lists(scalars, max_size=3),
        "video": scalars,
        "split": st.sampled_from(["train", "test"]) | values,
        "question": scalars,
        "answer": scalars,
        "conversations": st.lists(messages, max_size=4) | values,
    },
)


@settings(max_examples=300)
@given(st.lists(entries, max_size=3), st.booleans())
@example([{"question": float("nan"), "answer": float("inf")}], True)
def test_odd_json_is_records_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: list[Any], lines: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "a.png").touch()
    text = "\n".join(json.dumps(entry) for entry in content) if lines else json.dumps(content)
    check(folder / "fuzz.json", text.encode())


@given(st.binary(max_size=50) | st.text('[]{}":,\\u0dD8 \n<image>fromvalue').map(str.encode))
def test_odd_bytes_are_records_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    check(tmp_path_factory.getbasetemp() / "fuzz.json", content)


def check(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    records, fault = [], str(file)
    try:
        records = load_records(file)
        assert list(open_records(file)) == records
    except DataError as error:
        fault = str(error)
    assert fault.startswith(str(file))
    assert all(turn.question.encode() and turn.answer.encode() for record in records for turn in record.turns)
