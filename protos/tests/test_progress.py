"""Progress goes to standard error: a bar on a terminal, a line every ten seconds elsewhere."""

import pytest

from vlmpress.cli import progress, progress_bars


def test_plain_lines_come_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 4.0, 12.0, 13.0, 30.0])
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: next(clock))
    with progress("train") as bar:
        for done in (0, 1, 3, 4, 6):
            bar.update(done, 6, f"loss {done}")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "train: 3/6 loss 3 (12 s left)\ntrain: 6/6 loss 6 (0 s left)\n"


def test_a_resumed_steps_time_left_counts_only_what_was_done_since(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 20.0])
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: next(clock))
    with progress("train") as bar:
        bar.update(81, 200)
        bar.update(100, 200)
    assert capsys.readouterr().err == "train: 100/200  (100 s left)\n"


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("train") as bar:
        bar.update(1, 2, "note")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "train note" in shown.err


def test_an_error_passes_through() -> None:
    with pytest.raises(ValueError, match="inside"), progress("train"):
        raise ValueError("inside")
