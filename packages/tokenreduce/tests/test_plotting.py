"""Figure 2 of the paper: what is drawn, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from tokenreduce import PlotError
from tokenreduce.plotting import PAPER_TAUS, density, save_figure, sigma_figure

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

FACTORS = (1, 2, 3)


def sigmas(num_images):
    """Ascending sigmas, so that image i is the i-th simplest."""
    return np.linspace(0.1, 0.3, num_images)[:, None] + np.array([0.02, 0.01, 0])


def pictures(num_images):
    return [Image.new("RGB", (30 + index, 40), (index, 0, 0)) for index in range(num_images)]


def shown(figure):
    """Red value of each thumbnail of each half: the image's index."""
    halves = figure.subfigs[1].subfigs
    return [[int(axes.images[0].get_array()[0, 0, 0]) for axes in half.axes if axes.images] for half in halves]


@pytest.mark.parametrize(("num_images", "num_shown"), [(2, 1), (3, 1), (12, 6), (19, 9), (20, 10), (31, 10)])
def test_both_ends_are_shown_and_nothing_twice(num_images, num_shown):
    simplest, busiest = shown(sigma_figure(sigmas(num_images), FACTORS, images=pictures(num_images)))
    assert simplest == list(range(num_shown))
    assert busiest == list(range(num_images - 1, num_images - 1 - num_shown, -1))


def test_every_factor_has_a_density_and_every_tau_a_line():
    axes = sigma_figure(sigmas(9), FACTORS, taus=(0.2, 0.1)).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["sigma(1)", "sigma(2)", "sigma(3)", "tau 0.1, 0.2"]
    assert sorted(line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--") == [0.1, 0.2]
    assert max(PAPER_TAUS) == 0.09


@pytest.mark.parametrize(
    "values", [[0.3], [0.2, 0.2, 0.2], [0.1, 0.11, 0.5, 0.9], list(np.random.default_rng(0).random(200))]
)
def test_a_density_is_positive_and_integrates_to_one(values):
    places = np.linspace(-2, 3, 20001)
    heights = density(np.array(values), places)
    assert (heights >= 0).all()
    assert np.trapezoid(heights, places) == pytest.approx(1, abs=1e-3)


def test_a_density_of_many_normal_values_is_the_normal_density():
    values = np.random.default_rng(0).normal(0.5, 0.1, 4000)
    peak = density(values, np.array([0.5, 0.6]))
    assert peak == pytest.approx([3.989, 2.420], rel=0.1)


@pytest.mark.parametrize("suffix", ["png", "svg", "PNG"])
def test_the_same_picture_has_the_same_bytes(tmp_path, suffix):
    paths = [tmp_path / "new" / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        save_figure(sigma_figure(sigmas(4), FACTORS, images=pictures(4)), path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first.startswith(b"<?xml" if suffix == "svg" else b"\x89PNG")
    assert sorted(path.name for path in paths[0].parent.iterdir()) == [f"a.{suffix}", f"b.{suffix}"]


def test_a_failed_picture_leaves_nothing(tmp_path, monkeypatch):
    figure = sigma_figure(sigmas(4), FACTORS)
    monkeypatch.setattr(figure, "savefig", lambda *args, **options: (_ for _ in ()).throw(OSError("full")))
    (tmp_path / "old.png").write_text("old", encoding="utf-8")
    with pytest.raises(OSError, match="full"):
        save_figure(figure, tmp_path / "old.png")
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_text(encoding="utf-8") == "old"


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(PlotError, match=r"expected a non-empty \[N, 3\]"):
        sigma_figure(sigmas(0), FACTORS)
    with pytest.raises(PlotError, match=r"expected a non-empty \[N, 2\]"):
        sigma_figure(sigmas(3), (1, 2))
    with pytest.raises(PlotError, match=r"png or \.svg"):
        save_figure(sigma_figure(sigmas(3), FACTORS), Path("a.gif"))
