"""Ready batches of a run, by number."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch.utils.data import Dataset

from stagetrain.errors import ConfigError, ImageUnreadableError, SampleError, TemplateError
from stagetrain.samples.groups import Sample
from stagetrain.samples.ordering import OrderName, order_samples

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
        return self._collator.draw(self._samples[index], epoch, index)

    def _fault(self, sample: Sample) -> str | None:
        """Why a sample cannot be trained on, in one line; None: it can."""
        try:
            self._collator([sample])
        except _FAULTS as error:
            return " ".join(str(error).split())
        return None
