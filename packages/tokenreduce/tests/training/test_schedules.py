import math

import pytest

from tokenreduce import PolicyError, ReductionPolicy
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.reducers.random_pooling import RandomPooling
from tokenreduce.training.schedules import ConstantSchedule, LearningRateSchedule, PiecewiseSchedule

POLICY = ReductionPolicy(tau=0.4, mode="literal", factors=(1, 2, 4))


def test_a_constant_schedule_draws_anew_at_every_step():
    schedule = ConstantSchedule(reducer=RandomPooling(seed=3))
    assert schedule.at(7, 0.1) == RandomPooling(seed=3, step=7)
    fixed = FixedPooling(factor=2)
    assert ConstantSchedule(reducer=fixed).at(7, 0.1) is fixed


@pytest.mark.parametrize("learning_rate", [1e-3, 5e-4, 1e-9, 1e-3 * (1 + 1e-9)])
def test_tau_follows_the_learning_rate(learning_rate):
    reducer = LearningRateSchedule(policy=POLICY, max_learning_rate=1e-3).at(0, learning_rate)
    assert isinstance(reducer, DfmrReducer)
    assert reducer.policy.tau == pytest.approx(0.4 * learning_rate / 1e-3)
    assert (reducer.policy.mode, reducer.policy.factors) == (POLICY.mode, POLICY.factors)


@pytest.mark.parametrize("learning_rate", [0.0, 5e-324])
def test_without_a_learning_rate_nothing_is_reduced(learning_rate):
    schedule = LearningRateSchedule(policy=POLICY, max_learning_rate=10.0)
    assert schedule.at(0, learning_rate) == FixedPooling(factor=1)


def test_pieces_start_at_their_fraction():
    pieces = [FixedPooling(factor=factor) for factor in (1, 2, 3)]
    schedule = PiecewiseSchedule(
        num_steps=30, starts=(0.0, 0.1, 0.5), pieces=[ConstantSchedule(reducer=each) for each in pieces]
    )
    factors = [schedule.at(step, 0.1).factor for step in range(33)]
    assert factors == [1] * 3 + [2] * 12 + [3] * 18


def test_pieces_are_asked_with_the_step_and_rate_of_the_whole_run():
    schedule = PiecewiseSchedule(
        num_steps=4,
        starts=(0.0, 0.5),
        pieces=(
            ConstantSchedule(reducer=RandomPooling(seed=1)),
            LearningRateSchedule(policy=POLICY, max_learning_rate=1.0),
        ),
    )
    assert schedule.at(1, 1.0) == RandomPooling(seed=1, step=1)
    assert schedule.at(2, 0.5).policy.tau == 0.2


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LearningRateSchedule(policy=POLICY, max_learning_rate=0.0), "max_learning_rate: .* got 0.0"),
        (lambda: LearningRateSchedule(policy=POLICY, max_learning_rate=math.inf), "max_learning_rate: .* got inf"),
        (
            lambda: LearningRateSchedule(policy=POLICY, max_learning_rate=1e-3).at(5, 2e-3),
            "learning_rate: expected 0 to 0.001 at step 5, got 0.002",
        ),
        (lambda: LearningRateSchedule(policy=POLICY, max_learning_rate=1e-3).at(5, -1e-9), "learning_rate"),
        (lambda: LearningRateSchedule(policy=POLICY, max_learning_rate=1e-3).at(5, math.nan), "got nan"),
        (lambda: ConstantSchedule(reducer=FixedPooling(factor=1)).at(-1, 0.0), "step: expected an integer >= 0"),
        (lambda: PiecewiseSchedule(num_steps=0, starts=(0,), pieces=(None,)), "num_steps"),
        (lambda: PiecewiseSchedule(num_steps=9, starts=(), pieces=()), r"starts: .* got \[\]"),
        (lambda: PiecewiseSchedule(num_steps=9, starts=(0.1,), pieces=(None,)), "starts"),
        (lambda: PiecewiseSchedule(num_steps=9, starts=(0, 0.5, 0.5), pieces=(None,) * 3), "starts"),
        (lambda: PiecewiseSchedule(num_steps=9, starts=(0, 1.0), pieces=(None,) * 2), "starts"),
        (lambda: PiecewiseSchedule(num_steps=9, starts=(0, 0.5), pieces=(None,)), "pieces: expected 2"),
    ],
)
def test_bad_parameters(make, match):
    with pytest.raises(PolicyError, match=match):
        make()
