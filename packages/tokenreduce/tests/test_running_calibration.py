"""Calibration bit by bit equals calibration at once, and counts the tokens that a model adds itself."""

import math

import pytest
import torch

from tokenreduce import (
    CalibrationError,
    CalibrationSettings,
    FeatureError,
    PolicyError,
    ReductionPolicy,
    RunningCalibration,
    calibrate,
    plan,
    plan_budget,
)
from tokenreduce.reducing import VisualGrid


def views(num_row_tokens=0):
    """Nine views of three sizes, from flat to noisy."""
    sizes = [(6, 5), (4, 8), (1, 3)] * 3
    return [
        VisualGrid(
            features=torch.linspace(0, 1, 4) + 0.1 * index * torch.randn(*size, 4), num_row_tokens=num_row_tokens
        )
        for index, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("wish", [{"mean_tokens": 12.0}, {"factor_shares": (0.3, 0.3, 0.4)}])
@pytest.mark.parametrize("step", [1, 4, 9])
def test_bit_by_bit_is_at_once(wish, step):
    given = views()
    running = RunningCalibration(CalibrationSettings(**wish, mode="literal", normalization="none"))
    for start in range(0, 9, step):
        running.add(given[start : start + step])
    assert running.num_views == 9
    expected = calibrate([[view.features for view in given]], **wish, mode="literal", normalization="none")
    assert running.policy() == expected


def test_row_tokens_count():
    given = views(num_row_tokens=2)
    running = RunningCalibration(CalibrationSettings(mean_tokens=20.0))
    running.add(given)
    policy = running.policy()
    plans, _ = plan(given, policy)
    assert policy.calibration.mean_tokens == sum(image.num_tokens for image in plans) / 9
    for view, image in zip(given, plans, strict=True):
        height, width = (-(-side // image.factor) for side in view.features.shape[:2])
        assert image.num_tokens == height * (width + 2)
    within = plan_budget(given, 120)
    assert sum(image.num_tokens for image in within) <= 120


def test_views_without_row_tokens_are_planned_as_their_grids():
    given = views()
    grids = [view.features for view in given]
    policy = ReductionPolicy(tau=0.5)
    assert plan(given, policy) == plan(grids, policy)
    assert plan_budget(given, 90, (1, 2), "none") == plan_budget(grids, 90, (1, 2), "none")


def test_nothing_to_calibrate_on():
    running = RunningCalibration(CalibrationSettings(mean_tokens=20.0))
    with pytest.raises(CalibrationError, match="at least one"):
        running.policy()
    with pytest.raises(FeatureError, match="NaN"):
        running.add([VisualGrid(features=torch.full((2, 2, 2), math.nan))])


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, CalibrationError),
        ({"mean_tokens": 9.0, "factor_shares": (1.0, 0.0, 0.0)}, CalibrationError),
        ({"mean_tokens": math.inf}, CalibrationError),
        ({"mean_tokens": -1.0}, CalibrationError),
        ({"factor_shares": (0.5, 0.5)}, CalibrationError),
        ({"factor_shares": (0.5, 0.7, -0.2)}, CalibrationError),
        ({"factor_shares": (0.5, 0.2, 0.2)}, CalibrationError),
        ({"mean_tokens": 9.0, "factors": (2, 3)}, PolicyError),
        ({"mean_tokens": 9.0, "mode": "both"}, PolicyError),
        ({"mean_tokens": 9.0, "normalization": "rows"}, PolicyError),
    ],
)
def test_bad_settings_are_refused(fields, kind):
    with pytest.raises(kind, match="expected"):
        CalibrationSettings(**fields)
