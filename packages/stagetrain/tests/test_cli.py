import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlmpress.cli
from stagetrain import StageTrainError
from stagetrain.cli import app
from vlmpress.data import DataError, Record, write_records

Make = Callable[..., Any]


def call(*arguments: object) -> int:
    return vlmpress.cli.run(app, (StageTrainError, DataError), [str(argument) for argument in arguments])


@pytest.fixture
def model_dir(tmp_path: Path, make_model: Make, processor: Any) -> Path:
    make_model(2).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path, records: list[Record]) -> Path:
    folder = records[0].image.parent if records[0].image else tmp_path
    write_records(tmp_path / "data.jsonl", records, folder)
    return tmp_path / "data.jsonl"


def test_train_writes_a_model_directory(
    tmp_path: Path, model_dir: Path, data: Path, records: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    assert records[0].image is not None
    images, out = records[0].image.parent, tmp_path / "out"
    arguments = ("train", "--model", model_dir, "--data", data, "--images", images, "--scheme", "plain")
    code = call(*arguments, "--steps", 4, "--batch", 2, "--learning-rate", 1e-3, "--out", out)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    summary = json.loads(printed.out)
    assert summary["steps"] == 4
    AutoModelForImageTextToText.from_pretrained(out)
    AutoProcessor.from_pretrained(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "model", "out"]
    assert call(*arguments, "--steps", 4, "--out", out) == 2
    assert "does not exist yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["schemes", "--unknown"], "--unknown"),
        (["train", "--scheme", "three"], "Missing option"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--scheme": "three"}, "expected one of"),
        ({"--scheme": "edge"}, "expected prefixes"),
        ({"--model": "missing"}, "expected a model"),
        ({"--data": "missing.jsonl"}, "expected a readable dataset"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    model_dir: Path,
    data: Path,
    records: list[Record],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    message: str,
) -> None:
    assert records[0].image is not None
    options: dict[str, object] = {
        "--model": model_dir,
        "--data": data,
        "--images": records[0].image.parent,
        "--steps": 2,
        "--out": tmp_path / "out",
        **change,
    }
    assert call("train", *(part for pair in options.items() for part in pair)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()
