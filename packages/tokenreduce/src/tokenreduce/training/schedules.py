"""Which reducer a training step uses: a pure function of the optimizer step and its learning rate."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tokenreduce.errors import PolicyError
from tokenreduce.policy import ReductionPolicy
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducers.drawing import keyed
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.reducers.views import check_count
from tokenreduce.reducing import Reducer

# A learning rate may be above the largest one by this share: schedulers multiply in floating point.
_ROUNDING = 1e-6


class ReductionSchedule(Protocol):
    """Says which reducer to use when; it keeps no state, so a resumed run goes on as if nothing had happened."""

    def at(self, step: int, learning_rate: float) -> Reducer:
        """The reducer of a step.

        Args:
            step: The optimizer step, from 0; micro-batches and evaluations do not count.
            learning_rate: What the optimizer takes this step with.

        Raises:
            PolicyError: The step or the learning rate is out of range.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstantSchedule:
    """The same reducer at every step; what it draws is drawn anew.

    With `RandomPooling` this trains the paper's baseline "random", with a `DfmrReducer` its DFMR model.
    """

    reducer: Reducer

    def at(self, step: int, learning_rate: float) -> Reducer:
        """See `ReductionSchedule.at`."""
        check_count("step", step, least=0)
        return keyed(self.reducer, step=step)


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRateSchedule:
    """DFMR with tau in proportion to the learning rate: the policy's own at the largest rate, less below.

    The paper names it for continued pretraining (LLaVA-Zip, sections 4.4 and 5) and gives no formula. Here
    tau(step) = tau * learning_rate(step) / max_learning_rate. tau has to stay above 0: where the product is 0, as
    in the first step of a warm-up and the last of a decay, nothing is reduced (pooling by 1).

    Attributes:
        policy: Its tau is that at the largest learning rate.
        max_learning_rate: The largest learning rate of the run.

    Raises:
        PolicyError: The learning rate is not a finite number above 0.
    """

    policy: ReductionPolicy
    max_learning_rate: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_learning_rate) and self.max_learning_rate > 0):
            raise PolicyError(f"max_learning_rate: expected a finite number > 0, got {self.max_learning_rate!r}")

    def at(self, step: int, learning_rate: float) -> Reducer:
        """See `ReductionSchedule.at`."""
        check_count("step", step, least=0)
        share = learning_rate / self.max_learning_rate
        if not 0 <= share <= 1 + _ROUNDING:
            raise PolicyError(
                f"learning_rate: expected 0 to {self.max_learning_rate} at step {step}, got {learning_rate}"
            )
        tau = self.policy.tau * share
        if tau == 0:
            return FixedPooling(factor=1)
        return DfmrReducer(replace(self.policy, tau=tau))


@dataclass(frozen=True, kw_only=True, slots=True)
class PiecewiseSchedule:
    """One schedule after another, over fractions of a training run.

    Attributes:
        num_steps: Optimizer steps of the whole run; later steps belong to the last piece.
        starts: Fraction at which each piece starts, ascending from 0, below 1.
        pieces: A schedule for each start. They are asked with the step and learning rate of the whole run.

    Raises:
        PolicyError: A field is out of range, or there is not a piece for each start.
    """

    num_steps: int
    starts: Sequence[float]
    pieces: Sequence[ReductionSchedule]

    def __post_init__(self) -> None:
        check_count("num_steps", self.num_steps)
        ascending = all(left < right for left, right in itertools.pairwise(self.starts))
        if not self.starts or self.starts[0] != 0 or not ascending or not self.starts[-1] < 1:
            raise PolicyError(f"starts: expected ascending fractions from 0, below 1, got {list(self.starts)}")
        if len(self.pieces) != len(self.starts):
            raise PolicyError(f"pieces: expected {len(self.starts)}, one for each start, got {len(self.pieces)}")

    def at(self, step: int, learning_rate: float) -> Reducer:
        """See `ReductionSchedule.at`."""
        check_count("step", step, least=0)
        # A quotient, not start * num_steps: 0.1 * 30 is above 3, 3 / 30 is 0.1.
        started = [start <= step / self.num_steps for start in self.starts]
        return self.pieces[sum(started) - 1].at(step, learning_rate)
