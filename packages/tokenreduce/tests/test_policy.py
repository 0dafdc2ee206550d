import dataclasses
import math

import pytest

from tokenreduce import CalibrationDistribution, PolicyError, ReductionPolicy

ROW = tuple(step / 10 for step in range(11))
SEEN = CalibrationDistribution(
    num_images=4, mean_tokens=22.5, shares=(0.25, 0.25, 0.5), deciles=((0.0,) * 11, ROW, ROW)
)


def test_a_policy_keeps_what_it_saw():
    policy = ReductionPolicy(tau=0.5, calibration=SEEN)
    assert policy.calibration == SEEN
    assert policy.calibrated_mean_tokens == 22.5
    assert ReductionPolicy(tau=0.5).calibrated_mean_tokens == 0
    assert hash(policy) == hash(dataclasses.replace(policy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 0}, "calibration.num_images: expected at least 1, got 0"),
        ({"mean_tokens": 0.0}, "calibration.mean_tokens: expected a finite number > 0, got 0.0"),
        ({"mean_tokens": math.nan}, "calibration.mean_tokens"),
        ({"shares": (0.25, 0.25, 0.25)}, "calibration.shares: expected numbers that add up to 1"),
        ({"shares": (-0.5, 1.0, 0.5)}, "calibration.shares"),
        ({"shares": (math.nan, 1.0, 0.0)}, "calibration.shares"),
        ({"deciles": (ROW, ROW)}, "calibration.deciles: expected 3 rows, got 2"),
        ({"deciles": (ROW, ROW, ROW[:10])}, "calibration.deciles: expected 11 ascending"),
        ({"deciles": (ROW, ROW, ROW[::-1])}, "calibration.deciles: expected 11 ascending"),
        ({"deciles": (ROW, ROW, (*ROW[:10], math.inf))}, "calibration.deciles: expected 11 ascending"),
    ],
)
def test_a_distribution_that_cannot_be_is_refused(change, message):
    with pytest.raises(PolicyError, match=message):
        dataclasses.replace(SEEN, **change)


def test_a_distribution_of_other_factors_is_refused():
    with pytest.raises(PolicyError, match=r"calibration\.shares: expected 2, one a factor, got 3"):
        ReductionPolicy(tau=0.5, factors=(1, 2), calibration=SEEN)
