import json

import pytest
import torch
import typer

import vlmpress.cli
from stagetrain import CompressionSetting, Schedule, Stage, named_schedule
from stagetrain.cli_bench import bench
from stagetrain.errors import ConfigError, FeatureCacheError, StageTrainError
from stagetrain.timing.synthetic import SyntheticShape, synthetic_batch, synthetic_llava
from stagetrain.timing.wall_clock import Round, StepTime, summarize, time_schedule

SHAPE = SyntheticShape(num_layers=3, num_visual_tokens=16, num_text_tokens=6, batch=2, hidden_size=16, num_heads=2)


def run(*arguments):
    app = typer.Typer()
    app.command()(bench)
    return vlmpress.cli.run(app, (StageTrainError,), list(arguments))


def steps(*walls):
    return tuple(StepTime(wall, wall / 2) for wall in walls)


def test_summary_of_known_times():
    pooled = Stage(fraction=0.5, compression=CompressionSetting(layer=1, stride=8))
    schedule = Schedule("two", (pooled, Stage(fraction=0.5)))
    rounds = [
        Round((steps(1.0, 2.0), steps(4.0, 5.0)), steps(4.0, 4.0, 6.0, 6.0)),
        Round((steps(1.0, 1.0), steps(4.0, 4.0)), steps(4.0, 4.0, 4.0, 4.0)),
        Round((steps(9.0, 9.0), steps(9.0, 9.0)), steps(9.0, 9.0, 9.0, 9.0)),
    ]
    summary = summarize(rounds, schedule, 120)
    assert (summary["rounds"], summary["steps_per_run"]) == (3, 4)
    first = summary["step"]["stage 1: average, layer 1, stride 8"]
    assert first == {
        "min": {"wall_s": 1.0, "cpu_s": 0.5},
        "median": {"wall_s": 1.5, "cpu_s": 0.75},
        "tokens_per_s": 120.0,
    }
    assert summary["step"]["plain"]["median"]["wall_s"] == 5.0
    assert summary["run"]["staged"] == {
        "min": {"wall_s": 10.0, "cpu_s": 5.0},
        "median": {"wall_s": 12.0, "cpu_s": 6.0},
    }
    # Rounds save 1 - 12/20, 1 - 10/16 and nothing.
    assert summary["saving_percent"]["wall_s"] == {"of_min": 37.5, "median": 37.5}


def test_steps_of_every_stage_are_timed_and_the_model_is_plain_after():
    model, batch = synthetic_llava(SHAPE), synthetic_batch(SHAPE)
    seen = []
    rounds = time_schedule(model, batch, named_schedule("three_stage_deeper", 3), 4, 2, lambda *at: seen.append(at))
    assert [[len(stage) for stage in each.stages] for each in rounds] == [[1, 2, 1]] * 2
    assert [len(each.plain) for each in rounds] == [4, 4]
    assert all(step.wall_s > 0 for each in rounds for stage in (*each.stages, each.plain) for step in stage)
    assert seen == [(1, 2), (2, 2)]
    with torch.no_grad():
        assert model(**batch).logits.shape[1] == 22
    assert "forward" not in model.model.vision_tower.__dict__


def test_a_tower_that_trains_is_refused():
    model = synthetic_llava(SHAPE)
    model.model.vision_tower.requires_grad_(True)
    with pytest.raises(FeatureCacheError):
        time_schedule(model, synthetic_batch(SHAPE), named_schedule("two_stage", 3), 2, 1)


@pytest.mark.parametrize(
    "wrong", [{"num_visual_tokens": 15}, {"hidden_size": 18}, {"batch": 0}, {"num_text_tokens": 1}]
)
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(ConfigError, match="bench: expected"):
        SyntheticShape(**wrong)


def test_command_on_a_synthetic_model(capsys):
    small = ("--layers=3", "--tokens=16", "--text=6", "--hidden=16", "--batch=2", "--steps=3", "--rounds=1")
    assert run(*small, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["layers"], report["visual_tokens"], report["text_tokens"], report["batch"]) == (3, 16, 6, 2)
    assert len(report["step"]) == 4
    assert run(*small) == 0
    assert "saved: " in capsys.readouterr().out
    assert run(*small, "--scheme=none") == 2


def test_command_on_a_model_directory(tmp_path, capsys, make_model, make_processor):
    assert run("--model", str(tmp_path)) == 2
    assert "expected a model directory" in capsys.readouterr().err
    make_model(2, 32).save_pretrained(tmp_path)
    make_processor(32).save_pretrained(tmp_path)
    assert run("--model", str(tmp_path), "--steps=3", "--rounds=1", "--batch=2", "--text=5", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["layers"], report["visual_tokens"], report["batch"]) == (2, 16, 2)
