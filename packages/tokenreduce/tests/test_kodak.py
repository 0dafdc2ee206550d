"""The statistics of the Kodak benchmark, and its first row where the photographs are at hand."""

import importlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

PACKAGE = Path(__file__).resolve().parents[1]
DATA = PACKAGE / ".." / ".." / ".." / "shared" / "data" / "kodak"


@pytest.fixture(scope="module")
def kodak():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PACKAGE / "benchmarks")
        yield importlib.import_module("kodak")


@pytest.fixture(scope="module")
def ranking(kodak):
    return importlib.import_module("ranking")


def test_ranks_share_ties(ranking):
    assert ranking.ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]


def test_spearman_is_the_formula_without_ties(ranking):
    random = np.random.default_rng(0)
    for size in (2, 5, 12):
        first, second = random.random(size), random.random(size)
        difference = first.argsort().argsort() - second.argsort().argsort()
        expected = 1 - 6 * (difference**2).sum() / (size * (size**2 - 1))
        assert ranking.spearman(first, second) == pytest.approx(expected)
    assert ranking.spearman(np.array([1, 2, 2, 3]), np.array([10, 20, 20, 30])) == pytest.approx(1)


def test_the_critical_value_is_that_of_all_permutations(kodak, ranking):
    # 7! = 5,040 permutations: few enough to count.
    straight = np.arange(7)
    reached = np.array([abs(ranking.spearman(straight, np.array(order))) for order in itertools.permutations(range(7))])
    critical = kodak.critical_value(7)
    assert (reached > critical + 1e-9).mean() <= 0.055
    assert (reached > critical - 0.05).mean() >= 0.045


@pytest.mark.skipif(not DATA.exists(), reason="the Kodak photographs are not at hand")
def test_residual_sigma_of_raw_patches_follows_measured_complexity(kodak):
    pytest.importorskip("PIL")
    records = [json.loads(line) for line in (DATA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    complexity = {name: np.array([record[name] for record in records]) for name in kodak.MEASURES}
    grids = kodak.whole_grids(kodak.open_encoder("patches:14"), [DATA / record["file"] for record in records])
    rows = {(row["mode"], row["normalization"]): row["spearman"] for row in kodak.measure(grids, complexity)}
    residual, literal = rows["residual", "image"], rows["literal", "none"]
    assert min(residual["jpeg_bpp"], residual["grad_mean"], residual["grad_entropy"], -residual["flat_frac"]) > 0.7
    assert max(map(abs, literal.values())) < 0.3
