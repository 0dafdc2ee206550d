from pathlib import Path

import pytest

from stagetrain.runs.loading import load_samples
from stagetrain.runs.run_config import DataConfig
from vlmpress.data import DataError, Record, Turn, write_records


def write(path: Path, *splits: str | None) -> Path:
    records = [Record(str(i), (), (Turn("is it", "red"),), split) for i, split in enumerate(splits)]
    write_records(path, records, path.parent)
    return path


@pytest.mark.parametrize("group_by_image", [False, True])
@pytest.mark.parametrize(
    ("given", "split", "expected"),
    [
        ((None, None), None, ["0", "1"]),
        ((None, None), "train", ["0", "1"]),
        (("train", "test", "train"), None, ["0", "2"]),
        (("test", "train"), None, ["1"]),
        (("test", "train"), "test", ["0"]),
    ],
)
def test_without_a_split_all_but_those_of_test_are_read(
    tmp_path: Path, group_by_image: bool, given: tuple[str | None, ...], split: str | None, expected: list[str]
) -> None:
    file = write(tmp_path / "data.jsonl", *given)
    samples = load_samples(DataConfig(records=file, split=split, group_by_image=group_by_image))
    assert [record.id for index in range(len(samples)) for record in samples[index].records] == expected


@pytest.mark.parametrize("group_by_image", [False, True])
@pytest.mark.parametrize(("given", "split"), [("test", None), ("train", "test"), (None, "test"), ("train", "")])
def test_a_file_without_such_records_is_refused(
    tmp_path: Path, group_by_image: bool, given: str | None, split: str | None
) -> None:
    file = write(tmp_path / "data.jsonl", given)
    with pytest.raises(DataError, match="at least one record of split"):
        load_samples(DataConfig(records=file, split=split, group_by_image=group_by_image))
