import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbdistill.errors import PlotError, ReportError
from verbdistill.seeing.figures import save_figure
from verbdistill.seeing.histories import DistillReport
from verbdistill.seeing.plotting import losses_figure, matches_figure, report_figure
from verbdistill.seeing.report import read_report, write_report
from verbdistill.seeing.summing_up import over_training, smoothed


def make_report(num_steps=40, **changes):
    """A falling loss; every layer first learns from the target of its own number, in the end from the last ones."""
    losses = [[2.0 / (step + 1) + target for target in range(3)] for step in range(num_steps)]
    early, late = ((0,), (1,)), ((1, 2), (3,))
    fields = {
        "student_layers": (1, 3),
        "teacher_layers": (2, 6, 10, 14),
        "losses": {"interaction": [sum(row) for row in losses], "sft": []},
        "target_losses": {
            "verbalization_teacher": [[*row, 5.0] for row in losses],
            "verbalization_student": [row[:2] for row in losses],
        },
        "matches": [early if step < num_steps / 2 else late for step in range(num_steps)],
        "settings": {"strategy": "vlsi|x", "seed": 3},
    }
    return DistillReport(**{**fields, **changes})


def test_shares_of_matched_layers_at_start_and_end():
    report = make_report()
    assert report.match_shares(at_end=False) == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert report.match_shares(at_end=True) == [[0, 0.5, 0.5, 0], [0, 0, 0, 1]]
    assert make_report(matches=[]).match_shares(at_end=True) == []
    mixed = make_report(matches=[((0,), (1,)), ((1,), (2,))] * 10)
    assert mixed.match_shares(at_end=False) == [[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]]


@given(st.integers(1, 60), st.integers(0, 2**31))
def test_shares_sum_to_one(num_steps, seed):
    import random

    draw = random.Random(seed)
    matches = [[draw.sample(range(4), draw.randint(1, 3)) for _ in range(2)] for _ in range(num_steps)]
    report = make_report(matches=matches)
    for at_end in (False, True):
        assert all(sum(row) == pytest.approx(1) for row in report.match_shares(at_end=at_end))


@pytest.mark.parametrize(
    "changes",
    [
        {"matches": [((0,), ())]},
        {"matches": [((0,), (4,))]},
        {"matches": [((0,),)]},
        {"matches": [((0,), (-1,))]},
        {"target_losses": {"verbalization_student": [[1.0, 2.0, 3.0]]}},
        {"target_losses": {"other": [[1.0, 2.0]]}},
        {"target_losses": {"interaction": [[1.0, float("nan")]]}},
        {"losses": {"sft": ["1"]}},
    ],
)
def test_histories_that_do_not_fit_are_refused(changes):
    with pytest.raises(ReportError):
        make_report(**changes)


def test_losses_over_training_are_means_of_a_twentieth():
    rows = [[float(step), 2.0 * step] for step in range(100)]
    first, second = over_training(rows)
    assert first == [7, 27, 47, 67, 87, 97]  # steps 5..9, 25..29, ...
    assert second == [2 * value for value in first]
    assert over_training([[3.0]]) == [[3.0] * 6]
    assert over_training([[1.0], [3.0]])[0][-1] == 3.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=350))
def test_smoothed_curves_go_through_the_table(values):
    places, means = smoothed(values)
    assert len(places) == len(means) == min(100, len(values))
    assert places == sorted(places)
    assert places[-1] == 1.0
    assert means[-1] == over_training([[value] for value in values])[0][-1]
    assert min(values) - 1e-6 <= min(means) <= max(means) <= max(values) + 1e-6


def test_what_is_written_is_read_again(tmp_path):
    pytest.importorskip("matplotlib")
    write_report(tmp_path, make_report())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["matched_layers.svg", "report.json", "report.md", "target_losses.svg"]
    found = read_report(tmp_path)
    assert found.student_layers == (1, 3)
    assert found.losses == make_report().losses
    assert found.match_shares(at_end=True) == make_report().match_shares(at_end=True)
    text = (tmp_path / "report.md").read_text()
    assert "| layer | 10% | 30% | 50% | 70% | 90% | 100% |" in text
    assert "| 14 | 5.000 |" in text
    assert "![Loss of every target over training](target_losses.svg)" in text
    assert "| strategy | vlsi\\|x |" in text
    assert "sft" not in text  # a phase of no steps


@pytest.mark.parametrize("layers", [(1, 3), ()])
def test_a_run_of_the_last_layer_alone_has_a_report(tmp_path, layers):
    """No intermediate loss: steps have rows of no target, and nothing was matched."""
    report = make_report(
        student_layers=layers,
        teacher_layers=layers,
        target_losses={"interaction": [[], []], "verbalization_student": []},
        matches=[],
    )
    write_report(tmp_path, report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert "##" not in (tmp_path / "report.md").read_text().split("## Settings")[0]
    assert read_report(tmp_path).losses == report.losses
    with pytest.raises(PlotError):
        report_figure(read_report(tmp_path))


def test_the_same_report_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, make_report())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_without_matplotlib_the_report_has_no_pictures(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_report(tmp_path, make_report())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert "vlmpress-verbdistill[plot]" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"losses": 3}', "[" * 100_000])
def test_what_is_no_report_is_refused_by_name(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ReportError, match=r"report\.json: expected the report of a distillation"):
        read_report(tmp_path)
    with pytest.raises(ReportError, match="expected the report"):
        read_report(tmp_path / "none")


def test_a_report_with_other_numbers_is_refused(tmp_path):
    write_report(tmp_path, make_report())
    values = json.loads((tmp_path / "report.json").read_text())
    values["matches"][3] = [[9], [1]]
    (tmp_path / "report.json").write_text(json.dumps(values))
    with pytest.raises(ReportError, match="step 3"):
        read_report(tmp_path)


class TestFigures:
    @pytest.fixture(autouse=True)
    def _needs_matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_matched_layers_are_drawn_as_they_are(self):
        left, right, _ = matches_figure(make_report()).axes
        assert left.images[0].get_array().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
        assert right.images[0].get_array().tolist() == [[0, 0.5, 0.5, 0], [0, 0, 0, 1]]
        assert [label.get_text() for label in right.get_xticklabels()] == ["2", "6", "10", "14"]

    def test_every_target_has_a_curve(self):
        axes = [each for each in losses_figure(make_report()).axes if each.lines]
        assert [len(each.lines) for each in axes] == [4, 8]  # a curve and its marks
        marks = axes[1].lines[7].get_ydata()
        assert list(marks) == [5.0] * 6

    @pytest.mark.parametrize(
        "changes", [{}, {"matches": []}, {"target_losses": {}}, {"target_losses": {"interaction": []}}]
    )
    def test_one_figure_holds_what_there_is(self, tmp_path, changes):
        save_figure(report_figure(make_report(**changes)), tmp_path / "x.png")
        assert (tmp_path / "x.png").stat().st_size > 2000

    def test_twenty_eight_and_eighty_layers(self, tmp_path):
        student, teacher = tuple(range(2, 28, 4)), tuple(range(2, 80, 4))
        report = DistillReport(
            student_layers=student,
            teacher_layers=teacher,
            losses={},
            target_losses={"verbalization_teacher": [[float(layer) for layer in teacher]] * 3},
            matches=[[(index,) for index in range(7)]] * 3,
        )
        save_figure(report_figure(report), tmp_path / "x.svg")

    def test_nothing_to_draw(self):
        with pytest.raises(PlotError, match="matches or losses"):
            report_figure(make_report(matches=[], target_losses={}))
