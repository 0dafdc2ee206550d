"""A run's micro-batches and shared words, as its configuration says."""

from typing import Any

from torch import Tensor

from verbdistill.config import DistillConfig
from verbdistill.data.alignment import shared_words
from verbdistill.data.pairing import PairRecordBatches
from verbdistill.data.rendering import tokenizer_of
from verbdistill.runs.run_config import RunConfig
from vlmpress.data import load_records

Processors = tuple[Any, Any]
"""The teacher's and the student's; a tokenizer where a model is of text alone."""


def open_batches(config: RunConfig, processors: Processors, *, rank: int = 0, world_size: int = 1) -> PairRecordBatches:
    """Micro-batches of the records that are not for tests, for both models.

    Args:
        config: The run.
        processors: Of both models.
        rank: Of this process.
        world_size: Processes.

    Raises:
        VocabularyMismatchError: The tokenizers differ and no alignment was asked for.
        BatchError: There is no record, or fewer rows than processes.
        DataError: The dataset file is bad.
    """
    records = [record for record in load_records(config.data, config.images) if record.split != "test"]
    return PairRecordBatches(
        records,
        *processors,
        batch_size=config.batch_size,
        seed=config.distill.seed,
        rank=rank,
        world_size=world_size,
        max_length=config.max_length,
        is_aligned=config.distill.alignment != "none",
    )


def open_words(config: DistillConfig, processors: Processors) -> tuple[Tensor, Tensor] | None:
    """Ids of the words that both tokenizers share, where they are asked for."""
    if config.alignment != "shared_words":
        return None
    teacher, student = (tokenizer_of(processor) for processor in processors)
    return shared_words(teacher, student)
