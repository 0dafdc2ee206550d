"""The data step: records and images as one dataset artifact."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlmpress.data import IMAGE_MARK, DataError, QuestionPrior, Record, load_records, split_records, write_records
from vlmpress.dataset.v1 import dataset_pb2
from vlmpress_services.datasets import EVALUATION, IMAGES, RECORDS
from vlmpress_services.pipeline.config import DataConfig
from vlmpress_services.pipeline.shapes import draw_records
from vlmpress_services.pipeline.stepping import Outcome, Work
from vlmpress_services.workers.runners import OnProgress


def make_dataset(config: DataConfig, seed: int, work: Work) -> Outcome:
    """Draws or copies the images, divides the records and draws the evaluation questions."""
    images = work.path / IMAGES
    images.mkdir()
    if config.file is None:
        total = config.num_train_images + config.num_test_images
        train = draw_records(
            images, "train", config.num_train_images, seed, lambda done, _: work.progress.update(done, total)
        )
        test = draw_records(
            images,
            "test",
            config.num_test_images,
            seed,
            lambda done, _: work.progress.update(config.num_train_images + done, total),
        )
    else:
        train, test = split_records(_about_one_image(config.file, load_records(config.file, config.images)), seed)
        for name, records in (("training", train), ("test", test)):
            if all(record.image is None for record in records):
                raise DataError(f"{config.file}: expected {name} records with images, got none")
        copied = _copy_images([*train, *test], images, work.progress.update)
        train, test = ([_moved(record, copied) for record in records] for records in (train, test))
    write_records(work.path / RECORDS, [*train, *test], images)
    evaluation = _questions(test, config.max_eval_questions, seed)
    write_records(work.path / EVALUATION, evaluation, images)
    prior = QuestionPrior.fit(train).accuracy(test)
    spec = dataset_pb2.Dataset(
        name=config.name,
        num_train=sum(len(record.turns) for record in train),
        num_test=sum(len(record.turns) for record in test),
        question_only_accuracy=prior["all"],
    )
    return Outcome(spec, {f"question_only_accuracy {name}": value for name, value in prior.items()})


def _questions(test: Sequence[Record], limit: int, seed: int) -> list[Record]:
    """A seeded draw of single questions, in the file's order; each turn of a conversation is asked alone."""
    single = [
        replace(record, id=f"{record.id}/{number}", turns=(turn,))
        for record in test
        for number, turn in enumerate(record.turns)
    ]
    chosen = sorted(random.Random(seed).sample(range(len(single)), min(limit, len(single))))
    return [single[index] for index in chosen]


def _copy_images(records: Sequence[Record], folder: Path, on_progress: OnProgress) -> dict[Path, Path]:
    """Copies every image once, numbered, since two folders may hold the same name."""
    sources = sorted({path for record in records for path in record.images})
    copied = {}
    for index, source in enumerate(sources):
        copied[source] = folder / f"{index:06d}{source.suffix.lower()}"
        shutil.copyfile(source, copied[source])
        on_progress(index + 1, len(sources), "")
    return copied


def _moved(record: Record, copied: dict[Path, Path]) -> Record:
    return replace(record, images=tuple(copied[path] for path in record.images))


def _about_one_image(file: Path, records: list[Record]) -> list[Record]:
    """The records, if the models of this job can take them all: one image, before or behind the question.

    Raises:
        DataError: A record has several images, or its image stands inside the text.
    """
    for record in records:
        if len(record.images) > 1 or (record.images and any(IMAGE_MARK in turn.question for turn in record.turns)):
            raise DataError(
                f"{file}: record {record.id}: expected at most one image, before or behind the first question, got"
                f" {len(record.images)}{' inside the text' if len(record.images) == 1 else ''}"
            )
    return records
