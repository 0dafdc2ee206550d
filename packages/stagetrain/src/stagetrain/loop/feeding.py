"""Ready batches to Trainer: which item is whose, and what a batch holds.

With A micro-batches a step and W ranks, micro-batch m of step s on rank r is item (s * A + m) * W + r.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments

from stagetrain.samples.rendering import IGNORED


@dataclass(frozen=True, slots=True)
class RunLength:
    """Steps of a run and of what Trainer calls an epoch.

    Attributes:
        num_steps: Optimizer steps.
        steps_per_epoch: Steps until all samples were seen once, rounded up.
    """

    num_steps: int
    steps_per_epoch: int

    @classmethod
    def of(cls, args: TrainingArguments, num_samples: int) -> "RunLength":
        """From `max_steps`, else `num_train_epochs`."""
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        per_epoch = -(-num_samples // batch)
        steps = args.max_steps if args.max_steps > 0 else -int(-args.num_train_epochs * per_epoch // 1)
        return cls(steps, per_epoch)


class TrainSampler(Sampler[int]):
    """Items of one rank in the epoch that the run is in when iteration begins."""

    def __init__(self, args: TrainingArguments, length: RunLength, step: Callable[[], int]) -> None:
        self._num_parts = args.gradient_accumulation_steps
        self._num_ranks, self._rank = args.world_size, args.process_index
        self._length = length
        self._step = step

    def __len__(self) -> int:
        return self._length.steps_per_epoch * self._num_parts

    def __iter__(self) -> Iterator[int]:
        per_epoch = self._length.steps_per_epoch
        first = self._step() // per_epoch * per_epoch
        for step in range(first, min(first + per_epoch, self._length.num_steps)):
            for part in range(self._num_parts):
                yield (step * self._num_parts + part) * self._num_ranks + self._rank


class EvalSampler(Sampler[int]):
    """Every rank's share of all items; the last ones wrap around, so that all ranks have as many."""

    def __init__(self, args: TrainingArguments, num_items: int) -> None:
        self._num_ranks, self._rank = args.world_size, args.process_index
        self._num_items = num_items

    def __len__(self) -> int:
        return -(-self._num_items // self._num_ranks)

    def __iter__(self) -> Iterator[int]:
        return ((place * self._num_ranks + self._rank) % self._num_items for place in range(len(self)))


def batch_loader(dataset: Dataset[Any], sampler: Sampler[int], args: TrainingArguments) -> DataLoader[Any]:
    """One ready batch at a time, made in `dataloader_num_workers` processes."""
    return DataLoader(
        dataset,
        batch_size=1,
        sampler=sampler,
        collate_fn=_only,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
        persistent_workers=args.dataloader_persistent_workers and args.dataloader_num_workers > 0,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context if args.dataloader_num_workers else None,
    )


def num_answer_tokens(batch: dict[str, Any]) -> int:
    """Labels that a causal loss reads: the first of a row has nothing before it."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def empty_batch() -> dict[str, Any]:
    """A batch without an answer, for a micro-batch whose samples were all left out."""
    ids = torch.zeros(1, 2, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full_like(ids, IGNORED)}


def part_seed(seed: int, step: int, part: int) -> int:
    """Random state of one micro-batch; `part` is its place among the step's micro-batches of all ranks."""
    return ((seed << 32) + step + part * 0x9E3779B97F4A7C15) % (1 << 63)


def _only(batches: list[Any]) -> Any:
    return batches[0]
