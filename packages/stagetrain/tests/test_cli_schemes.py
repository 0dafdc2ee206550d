import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from transformers import LlavaConfig

import vlmpress.cli
from stagetrain import StageTrainError, plan_schedule
from stagetrain.cli import app
from stagetrain.schedules.schedule_plot import schedule_figure


def call(*arguments: object) -> int:
    return vlmpress.cli.run(app, (StageTrainError,), ["schemes", *map(str, arguments)])


def test_schemes_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--layers", 32, "--tokens", 576, "--json") == 0
    found = json.loads(capsys.readouterr().out)["schemes"]
    schemes = {scheme["name"]: scheme["stages"] for scheme in found}
    assert list(schemes) == [
        "two_stage",
        "three_stage_deeper",
        "three_stage_wider",
        "four_stage_wider_then_deeper",
        "four_stage_deeper_then_wider",
    ]
    first, last = schemes["two_stage"]
    assert (first["fraction"], first["layer"], first["stride"], first["visual_tokens"]) == (0.5, 2, 8, 3312)
    assert first["cr_percent"] == 100 * 18432 / 3312
    assert first["prefill_tflops"] == pytest.approx(2.14, abs=0.01)
    assert (last["layer"], last["stride"], last["cr_percent"]) == (None, None, 100)
    assert found[0]["average"]["visual_tokens"] == 10872


def test_schemes_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    out = capsys.readouterr().out
    assert "four_stage_deeper_then_wider" in out
    assert "556.52" in out
    assert "on average" in out


def test_a_model_directory_gives_layers_and_tflops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4}
    LlavaConfig(text_config={"model_type": "llama", **sizes}).save_pretrained(tmp_path)
    assert call("--model", tmp_path, "--tokens", 64, "--text-tokens", 10, "--json") == 0
    stage = json.loads(capsys.readouterr().out)["schemes"][0]["stages"][1]
    assert stage["prefill_tflops"] == pytest.approx(2 * (4 * 64 * 64 + 3 * 64 * 160) * 4 * 74 / 1e12)
    assert call("--model", tmp_path, "--layers", 4) == 2
    assert call("--model", tmp_path / "none") == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_the_plot_holds_every_scheme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert call("--plot", tmp_path / "a.svg") == 0
    assert call("--plot", tmp_path / "b.svg") == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    ElementTree.parse(tmp_path / "a.svg")
    assert call("--plot", tmp_path / "a.pdf") == 2
    assert ".svg" in capsys.readouterr().err


def test_curves_end_at_what_a_scheme_costs() -> None:
    pytest.importorskip("matplotlib")
    for layers, tokens, share in ((32, 576, 5.20 / 8.26), (4, 64, None)):
        stages = plan_schedule("two_stage", layers, tokens)[1]
        line = schedule_figure({"two": stages}).axes[1].lines[0]
        expected = share or sum(stage.stage.fraction * 100 / stage.cr_percent for stage in stages)
        assert float(line.get_ydata()[-1]) == pytest.approx(expected, abs=1e-3)
