"""Calibration samples and questions from a dataset file, through the model's own processor."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from quantpack.errors import CalibrationError, MissingExtraError
from vlmpress.artifact import ArtifactError, import_model_code
from vlmpress.data import IMAGE_MARK, Record, Turn, chat_messages, load_records

if TYPE_CHECKING:
    from PIL.Image import Image

IGNORED = -100
"""Label of a token that is no answer."""
_BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A prompt with its answer, as one sequence.

    Attributes:
        sample: Forward keyword arguments of one row: input_ids [1, T] and what the processor adds.
        labels: [1, T], the answer's tokens, IGNORED elsewhere.
    """

    sample: dict[str, Any]
    labels: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionFile:
    """A dataset file to calibrate and to measure on.

    Attributes:
        file: LLaVA JSON/JSONL or VQA JSONL.
        images: Folder of its images; None: the file's own.
        num_samples: Questions to calibrate on.
        num_questions: Questions to measure accuracy on.
    """

    file: Path
    images: Path | None = None
    num_samples: int = 64
    num_questions: int = 500

    def samples(self, model_dir: Path) -> list[dict[str, Any]]:
        """Calibration samples, of split "train" where the file has splits; raises as `read_questions`."""
        return as_samples(self._read(model_dir, "train", self.num_samples))

    def questions(self, model_dir: Path, split: Literal["train", "test"]) -> list[Question]:
        """Questions to measure on, in batches, of a split where the file has splits; raises as `read_questions`."""
        return self._read(model_dir, split, self.num_questions)

    def _read(self, model_dir: Path, split: str, number: int) -> list[Question]:
        found = read_questions(model_dir, self.file, self.images, split=split, num_questions=number)
        return batches(found, _BATCH_SIZE)


def read_questions(
    model_dir: Path, data: Path, images: Path | None = None, *, split: str | None = None, num_questions: int = 128
) -> list[Question]:
    """`num_questions` questions of a LLaVA JSON/JSONL or VQA JSONL file, spread evenly over its records.

    Each turn of a conversation is a question of its own, asked without the others. Of records with several turns each
    gives another one, for the first of all of them may well be of one kind; none is taken twice.

    Args:
        model_dir: Holds the processor and its chat template.
        data: The file.
        images: Folder that its image paths are relative to; by default the file's own.
        split: Only records of this split, where the file has splits.
        num_questions: How many, or as many as there are.

    Raises:
        vlmpress.data.DataError: The file is no such dataset.
        CalibrationError: There is no question, no processor or no chat template, or an image cannot be read.
        MissingExtraError: Pillow or jinja2 is not installed.
    """
    from transformers import AutoProcessor

    records = [record for record in load_records(data, images) if split is None or record.split in (None, split)]
    if not records or num_questions < 1:
        raise CalibrationError(f"{data}: expected at least one record{f' of split {split}' if split else ''}, got none")
    step = max(len(records) // num_questions, 1)
    try:
        # A model with code of its own may have a processor of its own.
        import_model_code(model_dir)
        processor = AutoProcessor.from_pretrained(model_dir)
    except (OSError, ValueError, ArtifactError) as error:
        raise CalibrationError(f"{model_dir}: expected a processor, got {error}") from error
    turns = islice(_turns(records[::step][:num_questions]), num_questions)
    return [_question(record, turn, processor) for record, turn in turns]


def batches(questions: Sequence[Question], batch_size: int) -> list[Question]:
    """Questions put together, padded on the right; ones whose other arguments differ in shape stay apart."""
    groups: dict[object, list[Question]] = {}
    for question in questions:
        groups.setdefault(_shapes(question), []).append(question)
    return [
        _stack(group[begin : begin + batch_size])
        for group in groups.values()
        for begin in range(0, len(group), batch_size)
    ]


def as_samples(questions: Iterable[Question]) -> list[dict[str, Any]]:
    """Forward keyword arguments, with labels, as `quantize` takes them."""
    return [{**question.sample, "labels": question.labels} for question in questions]


def _turns(records: Sequence[Record]) -> Iterator[tuple[Record, Turn]]:
    """Every turn once: one of each record, beginning at another place in each, then the next ones."""
    for done in range(max(len(record.turns) for record in records)):
        for number, record in enumerate(records):
            if done < len(record.turns):
                yield record, record.turns[(number + done) % len(record.turns)]


def _question(record: Record, turn: Turn, processor: Any) -> Question:
    """A question and its answer, as the model's chat template puts them."""
    images = _images_of(record, turn)
    answered = chat_messages([turn], len(images))
    asked = answered[:1]
    try:
        prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        whole = processor.apply_chat_template(answered, tokenize=False)
    except ImportError as error:
        raise _missing("jinja2") from error
    except (ValueError, AttributeError) as error:
        raise CalibrationError(f"record {record.id}: expected a processor with a chat template, got {error}") from error
    if not whole.startswith(prompt):
        raise CalibrationError(f"record {record.id}: expected a chat template that only appends, got {whole!r:.200}")
    pictures = [_image(path) for path in images] or None
    encoded = dict(processor(text=prompt, images=pictures, return_tensors="pt"))
    answer = torch.tensor([processor.tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]])
    prompt_ids = encoded["input_ids"]
    sample = {name: _extended(name, value, prompt_ids, answer) for name, value in encoded.items()}
    labels = torch.cat((torch.full_like(prompt_ids, IGNORED), answer), 1)
    return Question(sample=sample, labels=labels)


def _images_of(record: Record, turn: Turn) -> tuple[Path, ...]:
    """Images of a question that is asked without the others: its own, or where it places none all before it."""
    if not any(IMAGE_MARK in one.question for one in record.turns):
        return record.images
    end = 0
    for one in record.turns:
        own = one.question.count(IMAGE_MARK)
        end += own
        if one is turn:
            return record.images[end - own if own else 0 : end]
    raise AssertionError(f"record {record.id}: the turn is one of another record")


def _extended(name: str, value: Tensor, prompt_ids: Tensor, answer: Tensor) -> Tensor:
    """What stands for each prompt token gets an end for the answer's tokens; the rest stays."""
    if name == "input_ids":
        return torch.cat((prompt_ids, answer), 1)
    if value.shape == prompt_ids.shape:
        return torch.cat((value, torch.full_like(answer, int(name == "attention_mask")).to(value.dtype)), 1)
    return value


def _image(path: Path) -> "Image":
    # Who only packs and loads does without.
    try:
        from PIL import Image
    except ImportError as error:
        raise _missing("pillow") from error
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    # What Pillow does not know and what is cut are OSErrors; what is too large to be an image is neither.
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise CalibrationError(f"{path}: expected a readable image, got {error}") from error


def _missing(library: str) -> MissingExtraError:
    return MissingExtraError(f"calibration data: expected {library}; pip install 'vlmpress-quantpack[calibration]'")


def _is_per_token(question: Question, name: str) -> bool:
    return bool(question.sample[name].shape == question.labels.shape)


def _shapes(question: Question) -> object:
    return tuple(
        (name, None if _is_per_token(question, name) else tuple(value.shape[1:]))
        for name, value in sorted(question.sample.items())
    )


def _stack(questions: Sequence[Question]) -> Question:
    length = max(question.labels.shape[1] for question in questions)

    def padded(value: Tensor, filler: int) -> Tensor:
        return torch.nn.functional.pad(value, (0, length - value.shape[1]), value=filler)

    sample = {}
    for name in questions[0].sample:
        values = [
            padded(question.sample[name], 0) if _is_per_token(question, name) else question.sample[name]
            for question in questions
        ]
        sample[name] = torch.cat(values)
    labels = torch.cat([padded(question.labels, IGNORED) for question in questions])
    return Question(sample=sample, labels=labels)
