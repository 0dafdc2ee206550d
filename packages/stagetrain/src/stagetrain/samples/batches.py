"""Ready batches of a run, by number."""

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

from torch.utils.data import ConcatDataset, Dataset

from stagetrain.errors import ConfigError, ImageUnreadableError, SampleError, TemplateError
from stagetrain.samples.groups import Sample
from stagetrain.samples.ordering import OrderName, order_samples
from stagetrain.schedules.schedule import Schedule

Batch = dict[str, Any]
"""Tensors by name; under SKIPPED a list of messages, where samples were left out."""

SKIPPED = "skipped"

MAX_BAD_IN_A_ROW = 1000
"""Samples tried for a batch without finding a usable one before it is given up."""

_FAULTS = (SampleError, TemplateError, ImageUnreadableError)


class BatchMaker(Protocol):
    """Draws from a sample and makes a batch of samples."""

    def draw(self, sample: Sample, epoch: int, index: int) -> Sample:
        """What of a sample is used in an epoch."""
        ...

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The tensors of a batch.

        Raises:
            SampleError, TemplateError, ImageUnreadableError: A sample cannot be trained on.
        """
        ...


class Batches(Dataset[Batch]):
    """Item `number` is that batch of the run: a pure function of (seed, number).

    Every epoch has all samples once; a batch may span two epochs. A sample that cannot be trained on
    is left out, and the batch says so under SKIPPED, one line for each. Where none of its samples can
    be, a batch takes those that follow in the order, so that it never lacks an answer.

    Args:
        samples: What to train on.
        collator: Makes the batches.
        batch_size: Samples in a batch.
        num_batches: Length of the run.
        seed: Of the order.
        order: See `order_samples`.
        first_epoch: Epochs before the first batch, for a run that goes on with samples seen before.

    Raises:
        ConfigError: There is nothing to train on, or a number is not positive.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        collator: BatchMaker,
        batch_size: int,
        num_batches: int,
        seed: int,
        order: OrderName = "shuffled",
        first_epoch: int = 0,
    ) -> None:
        if not len(samples) or batch_size < 1 or num_batches < 1:
            raise ConfigError(
                f"batches: expected samples and positive batch_size and num_batches, got {len(samples)} samples,"
                f" {batch_size} and {num_batches}"
            )
        self._samples = samples
        self._collator = collator
        self._batch_size = batch_size
        self._num_batches = num_batches
        self._first_epoch = first_epoch
        if first_epoch:
            # Else the new epochs would be in the order of the first ones.
            seed = random.Random(f"epoch {first_epoch} {seed}").getrandbits(48)
        self._order = order_samples(samples, batch_size, seed, order)

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, number: int) -> Batch:
        """The batch.

        Raises:
            SampleError: None of many samples in a row can be trained on.
        """
        places = self._order.batch(number)
        drawn = [self._draw(*next(places)) for _ in range(self._batch_size)]
        try:
            return self._collator(drawn)
        except _FAULTS:
            # Which samples are at fault shows when each is tried alone.
            faults = [self._fault(sample) for sample in drawn]
        good = [sample for sample, fault in zip(drawn, faults, strict=True) if fault is None]
        skipped = [fault for fault in faults if fault is not None]
        while not good:
            sample = self._draw(*next(places))
            fault = self._fault(sample)
            if fault is None:
                good.append(sample)
            elif len(skipped) >= min(MAX_BAD_IN_A_ROW, 2 * len(self._samples)):
                raise SampleError(f"batch {number}: expected a usable sample, got {len(skipped)} bad ones: {fault}")
            else:
                skipped.append(fault)
        batch = self._collator(good)
        return {**batch, SKIPPED: [*skipped, *batch.get(SKIPPED, [])]}

    def _draw(self, epoch: int, index: int) -> Sample:
        return self._collator.draw(self._samples[index], self._first_epoch + epoch, index)

    def _fault(self, sample: Sample) -> str | None:
        """Why a sample cannot be trained on, in one line; None: it can."""
        try:
            self._collator([sample])
        except _FAULTS as error:
            return " ".join(str(error).split())
        return None


def stage_batches(
    samples: Sequence[Sample],
    collator: BatchMaker,
    schedule: Schedule,
    borders: Sequence[int],
    batch_size: int,
    seed: int,
    order: OrderName = "shuffled",
) -> Dataset[Batch]:
    """The batches of a run in stages, by number.

    Where stages begin anew or have batches of their own size, each begins with a new epoch.

    Args:
        samples: As for `Batches`, like all not named here.
        collator: See there.
        schedule: The stages.
        borders: Number of each stage's first batch, and of batches in all.
        batch_size: Samples in a batch of a stage that does not scale it.
        seed: See there.
        order: See there.

    Raises:
        ConfigError: There is nothing to train on, or a number is not positive.
        ScheduleError: A stage's batches are not of a whole number of samples.
    """
    sizes = [stage.batch_size(batch_size) for stage in schedule.stages]
    if not schedule.restarts and set(sizes) == {batch_size}:
        return Batches(samples, collator, batch_size, borders[-1], seed, order)
    parts, num_epochs = [], 0
    for size, (first, last) in zip(sizes, pairwise(borders), strict=True):
        if last > first:
            parts.append(Batches(samples, collator, size, last - first, seed, order, num_epochs))
            num_epochs += -(-(last - first) * size // len(samples))
    return ConcatDataset(parts)
