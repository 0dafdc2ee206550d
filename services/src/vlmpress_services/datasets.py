"""What is where in a dataset artifact."""

from dataclasses import replace
from pathlib import Path

from vlmpress.data import Record, load_records

RECORDS, EVALUATION, IMAGES = "records.jsonl", "evaluation.jsonl", "images"


def read_split(path: Path, split: str) -> list[Record]:
    """The "train" or "test" records of a dataset artifact's directory."""
    return load_records(path / RECORDS, path / IMAGES, split=split)


def read_evaluation(path: Path) -> list[Record]:
    """The questions that are evaluated, one turn each, of a dataset artifact's directory; by default its test split."""
    if (path / EVALUATION).exists():
        return load_records(path / EVALUATION, path / IMAGES)
    return [replace(record, turns=(turn,)) for record in read_split(path, "test") for turn in record.turns]
