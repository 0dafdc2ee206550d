import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer

import vlmpress.cli
from stagetrain.assessing import Assessment, LayerAttention, Score, SettingResult
from stagetrain.assessing.plot import assessment_figure
from stagetrain.cli_assess import _default_layers, assess
from stagetrain.errors import StageTrainError
from stagetrain.schedules.setting import CompressionSetting
from vlmpress.artifact import COMPRESSION_FILE
from vlmpress.data import DataError, Record, write_records

MakeModel = Callable[..., Any]
app = typer.Typer()
app.command()(assess)


@pytest.fixture(scope="module")
def folder(make_model: MakeModel, processor: Any, records: list[Record], tmp_path_factory: Any) -> Path:
    """A model directory `model`, `data.jsonl` and its images."""
    found = tmp_path_factory.mktemp("assess")
    model = make_model(3)
    model.generation_config.suppress_tokens = [3]
    model.save_pretrained(found / "model")
    processor.save_pretrained(found / "model")
    images = records[0].images[0].parent
    shutil.copytree(images, found / "images")
    write_records(found / "data.jsonl", records[:12], images)
    return found


def run(folder: Path, *options: str) -> int:
    given = ["--model", folder / "model", "--data", folder / "data.jsonl", "--images", folder / "images"]
    return vlmpress.cli.run(app, (StageTrainError, DataError), [*map(str, given), *options])


def test_json_and_a_plot(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "figure.svg"
    options = ["--layers", "1,2", "--strides", "2,4", "--compressor", "average, vcc", "--limit", "9"]
    assert run(folder, *options, "--json", "--plot", str(plot)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == str(folder / "model")
    places = [(row["compressor"], row["layer"], row["stride"]) for row in found["results"]]
    assert places[0] == (None, None, None)
    assert places[1:] == [(name, k, s) for name in ("average", "vcc") for k in (1, 2) for s in (2, 4)]
    assert {row["num_questions"] for row in found["results"]} == {9}
    assert [layer["layer"] for layer in found["attention"]] == [0, 1, 2]
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.svg"]


def test_the_table_says_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--limit", "4") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("4 questions, 4 visual tokens, 3 layers")
    # Layers and strides that this model has.
    places = [["average", layer, stride] for layer in "12" for stride in "24"]
    assert [line.split()[:3] for line in table[4:8]] == places
    assert not table[8]


def test_the_setting_that_a_model_was_trained_with_is_asked_under_too(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    saved = {"format_version": 1, "layer": 2, "stride": 3, "compressor": "k_means", "seed": 0}
    (tmp_path / "model" / COMPRESSION_FILE).write_text(json.dumps(saved))
    options = ["--model", str(tmp_path / "model"), "--layers", "1", "--strides", "4", "--limit", "4", "--json"]
    assert run(folder, *options) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    places = [(row["compressor"], row["layer"], row["stride"]) for row in rows]
    assert places == [(None, None, None), ("k_means", 2, 3), ("average", 1, 4)]
    (tmp_path / "model" / COMPRESSION_FILE).write_text(json.dumps({**saved, "compressor": "q_former", "layer": 0}))
    assert run(folder, *options) == 2
    assert "whole without q_former" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "1,x"], "--layers: expected whole numbers with commas between them, got '1,x'"),
        (["--strides", ""], "--strides: expected whole numbers"),
        (["--layers", "3"], "expected a layer below 3, got 3"),
        (["--layers", "-1"], "layer of at least 0"),
        (["--strides", "5"], "stride of at most 4 visual tokens, got 5"),
        (["--compressor", "max"], "got 'max'"),
        (["--compressor", "q_former"], "needs no training"),
        (["--plot", "figure.jpg"], "figure.jpg: expected a name that ends in .png or .svg"),
        (["--data", "none.jsonl"], "none.jsonl: expected a readable dataset file"),
        (["--model", "none"], "none: expected a model directory"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(folder, *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_plot_without_matplotlib_names_the_extra(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return own(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run(folder, "--plot", str(tmp_path / "figure.svg")) == 2
    captured = capsys.readouterr()
    assert "pip install 'vlmpress-stagetrain[plot]'" in captured.err
    # It is said before the questions are asked.
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("num_layers", "expected"), [(32, [2, 8, 16, 24]), (4, [1, 2, 3]), (2, [1]), (1, [0])])
def test_default_layers_are_the_papers_and_every_quarter(num_layers: int, expected: list[int]) -> None:
    assert _default_layers(num_layers) == expected


def test_the_figure_draws_what_was_found() -> None:
    score = Score(100, 0.9)
    results = [SettingResult(setting=None, cr_percent=100.0, score=score, by_type={})]
    for name in ("average", "random"):
        for layer, stride, ratio, accuracy in ((1, 2, 180.0, 0.8), (1, 4, 300.0, 0.5), (2, 2, 150.0, 0.85)):
            setting = CompressionSetting(layer=layer, stride=stride, compressor=name)
            results.append(SettingResult(setting=setting, cr_percent=ratio, score=Score(100, accuracy), by_type={}))
    attention = tuple(
        LayerAttention(layer, {"visual": 0.5, "system": 0.0, "rest": 0.5}, {"visual": 0.1, "system": None, "rest": 0.2})
        for layer in range(3)
    )
    figure = assessment_figure(Assessment(num_layers=3, visual_tokens=4.0, results=tuple(results), attention=attention))
    accuracy, total, per_token = figure.axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in accuracy.lines}
    assert curves["K = 1, average"] == [
        [100.0, 90.0],
        [pytest.approx(1e4 / 180), 80.0],
        [pytest.approx(1e4 / 300), 50.0],
    ]
    assert set(curves) >= {"K = 2, average", "K = 1, random", "K = 2, random"}
    assert [line.get_label() for line in total.lines] == ["visual", "system", "rest"]
    assert [line.get_label() for line in per_token.lines] == ["visual", "rest"]
