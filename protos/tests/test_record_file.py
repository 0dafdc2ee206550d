"""Records read when they are asked for."""

import json
import pickle  # noqa: TID251  # what a worker process is sent
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmpress.data import DataError, RecordFile, load_records, open_records

Write = Callable[[Any], Path]


def lines(count: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"question": f"what is {number}?", "answer": "ä" * (number % 7 + 1), "image": ["a.png", "b.png"][: number % 3]}
        for number in range(count)
    )


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n \n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_are_found_again(dataset: Write, ending: str, mark: str) -> None:
    text = mark + ending.join(json.dumps(line, ensure_ascii=False) for line in lines(10))
    file = dataset(text)
    opened, loaded = open_records(file), load_records(file)
    assert isinstance(opened, RecordFile)
    assert [opened[index] for index in (9, 0, 4, -1)] == [loaded[index] for index in (9, 0, 4, -1)]
    assert opened[2:5] == loaded[2:5]
    assert [opened.text_length(index) for index in range(10)] == [record.text_length for record in loaded]
    assert [opened.num_images(index) for index in range(10)] == [len(record.images) for record in loaded]
    with pytest.raises(IndexError):
        opened[10]


def test_it_keeps_few_bytes_and_pickles_small(dataset: Write) -> None:
    file = dataset(lines(5000))
    opened = open_records(file)
    data = pickle.dumps(opened)
    assert len(data) < 5000 * 21 + 1000
    assert pickle.loads(data)[4321] == opened[4321]


def test_a_list_is_loaded_whole(dataset: Write) -> None:
    file = dataset(list(lines(3)))
    assert open_records(file) == load_records(file)


def test_a_changed_file_is_refused(dataset: Write) -> None:
    file = dataset(lines(3))
    opened = open_records(file)
    dataset(lines(4))
    with pytest.raises(DataError, match="expected the file as it was when it was opened"):
        opened[0]
    file.unlink()
    with pytest.raises(DataError, match="expected a readable dataset file"):
        opened[0]


def test_an_image_that_went_is_found_out_when_it_is_used(dataset: Write, images: Path) -> None:
    opened = open_records(dataset(lines(3)))
    (images / "a.png").unlink()
    assert opened[1].image == images / "a.png"
