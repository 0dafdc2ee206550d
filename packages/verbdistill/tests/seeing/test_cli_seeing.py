import json
import sys

import pytest
import torch

from verbdistill.cli import app
from verbdistill.errors import VerbDistillError
from verbdistill.seeing.histories import DistillReport
from verbdistill.seeing.report import write_report
from verbdistill.verbalizers.storing import save_verbalizers
from verbdistill.verbalizers.verbalizers import Verbalizers
from vlmpress.artifact import ArtifactError
from vlmpress.cli import run
from vlmpress.data import DataError


def call(*arguments):
    return run(app, (VerbDistillError, ArtifactError, DataError), [str(argument) for argument in arguments])


def one_line_error(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.fixture
def folder(run_folder, llava):
    """Models of the run, verbalizers of both, and a picture."""
    for name, depth, seed, layers in (("teacher", 3, 1, (1, 3)), ("student", 2, 2, (1, 2))):
        verbalizers = Verbalizers(llava(depth, seed=seed), layers, generator=torch.Generator().manual_seed(0))
        save_verbalizers(verbalizers, run_folder / f"{name}-verbalizers")
    return run_folder


def test_verbalize_prints_every_layer(folder, capsys):
    given = (folder / "teacher", folder / "0.png", "where", "--verbalizers", folder / "teacher-verbalizers")
    assert call("verbalize", *given, "--max-words", 3, "--num-likeliest", 2, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (model,) = found["models"]
    assert found["question"] == "where"
    assert [each["layer"] for each in model["layers"]] == [1, 3]
    assert model["answer"]["layer"] is None
    for each in (*model["layers"], model["answer"]):
        shares = [word["probability"] for word in each["first_words"]]
        assert len(shares) == 2
        assert 1 >= shares[0] >= shares[1] > 0
        assert len(each["text"].split()) <= 3
    assert call("verbalize", *given, "--max-words", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "where"
    assert [line.split()[0] for line in lines[3:]] == ["layer", "1", "3", "model"]


def test_verbalize_sets_two_models_beside_each_other(folder, capsys):
    given = (folder / "teacher", folder / "0.png", "where", "--verbalizers", folder / "teacher-verbalizers")
    both = (*given, "--against", folder / "student", "--against-verbalizers", folder / "student-verbalizers")
    assert call("verbalize", *both, "--json") == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [[each["layer"] for each in model["layers"]] for model in models] == [[1, 3], [1, 2]]
    # By default the same verbalizers read both, which takes a third layer.
    assert call("verbalize", *given, "--against", folder / "student") == 2
    assert "within 1..2" in one_line_error(capsys)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, "nowhere", "expected a model directory"),
        (1, "none.png", "none.png: expected a readable image"),
        (2, " ", "question: expected text"),
        (4, "student", "student"),
    ],
)
def test_bad_input_of_verbalize_is_one_line_and_exit_2(folder, capsys, place, value, said):
    given = [folder / "teacher", folder / "0.png", "where", "--verbalizers", folder / "teacher-verbalizers"]
    given[place] = value if place == 2 else folder / value
    assert call("verbalize", *given) == 2
    assert said in one_line_error(capsys)


def test_evaluate_prints_accuracy_by_type(folder, capsys):
    assert call("evaluate", folder / "student", folder / "data.jsonl", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_beams"] == 1
    assert found["scores"]["all"]["num_questions"] == found["scores"]["other"]["num_questions"] == 4
    assert found["scores"]["all"]["prior"] is None
    given = ("--beams", 5, "--limit", 2, "--train", folder / "data.jsonl", "--images", folder)
    assert call("evaluate", folder / "student", folder / "data.jsonl", *given) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["5", "beams", "questions", "accuracy", "prior"]
    assert [row.split()[0] for row in rows] == ["all", "other"]
    assert rows[0].split()[1] == "2"
    assert float(rows[0].split()[3]) in (0.0, 0.5)


def test_the_prior_comes_from_the_datas_own_training_split(folder, capsys):
    lines = [
        {"image": "0.png", "question": "where", "answer": "nw", "split": "train"},
        {"image": "1.png", "question": "where", "answer": "nw", "split": "test"},
        {"image": "2.png", "question": "where", "answer": "sw", "split": "test"},
    ]
    (folder / "split.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert call("evaluate", folder / "student", folder / "split.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["scores"]["all"]["prior"] == 0.5


def test_bad_input_of_evaluate_is_one_line_and_exit_2(folder, capsys):
    assert call("evaluate", folder / "student", folder / "none.jsonl") == 2
    one_line_error(capsys)
    assert call("evaluate", folder / "nowhere", folder / "data.jsonl") == 2
    assert "expected a model directory" in one_line_error(capsys)
    assert call("evaluate", folder / "student", folder / "data.jsonl", "--beams", 0) == 2
    one_line_error(capsys)


def report():
    return DistillReport(
        student_layers=(1, 2),
        teacher_layers=(1, 2, 3),
        losses={"sft": [1.0]},
        target_losses={"verbalization_student": [[2.0, 1.0], [1.0, 0.5]]},
        matches=[((0,), (2,))],
    )


def test_plot_draws_the_report(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write_report(tmp_path, report())
    assert call("plot", tmp_path, "--out", tmp_path / "all.svg") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "all.svg")
    assert "<svg" in (tmp_path / "all.svg").read_text()
    assert call("plot", tmp_path, "--out", tmp_path / "all.pdf") == 2
    assert "expected a name that ends in" in one_line_error(capsys)
    assert call("plot", tmp_path / "none", "--out", tmp_path / "none.svg") == 2
    assert "expected the report of a distillation" in one_line_error(capsys)
    assert not (tmp_path / "none.svg").exists()


def test_plot_without_matplotlib_names_the_extra(tmp_path, capsys, monkeypatch):
    write_report(tmp_path, report())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert call("plot", tmp_path, "--out", tmp_path / "x.svg") == 2
    assert "vlmpress-verbdistill[plot]" in one_line_error(capsys)
