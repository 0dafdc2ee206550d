"""Images with their questions, packed: one row an image, its questions blind to each other.

B rows, T positions.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlmpress.data import QuestionPrior, Record, chat_messages, load_records, question_type, split_records

EASY_VQA = Path(__file__).resolve().parents[4] / ".." / "shared" / "data" / "easy_vqa"
IGNORED = -100
MIXING = 1_000_003


@dataclass(frozen=True, slots=True)
class Question:
    """Token ids of one question behind the image, and how many of them at its end are the answer."""

    ids: tuple[int, ...]
    num_answer: int
    kind: str


@dataclass(frozen=True, slots=True)
class ImageQuestions:
    """An image's pixels [1, 3, H, W], the tokens up to its last placeholder, and its questions."""

    pixels: Tensor
    prefix: tuple[int, ...]
    questions: tuple[Question, ...]


def read_splits(file: Path, images: Path | None) -> tuple[list[Record], list[Record]]:
    """Splits as the file says, else a fixed tenth of the images for the test."""
    return split_records(load_records(file, images), seed=0)


def prior(train: Sequence[Record], test: Sequence[Record]) -> dict[str, float]:
    """Accuracy of the commonest training answer to the very same question, by question type."""
    return QuestionPrior.fit(train).accuracy(test)


def encode(records: Sequence[Record], processor: Any, num_images: int | None = None) -> list[ImageQuestions]:
    """Groups records by image and encodes them."""
    groups: dict[Path, list[Record]] = {}
    for record in records:
        groups.setdefault(record.images[0], []).append(record)
    return [_encoded(path, group, processor) for path, group in list(groups.items())[:num_images]]


def _encoded(path: Path, records: Sequence[Record], processor: Any) -> ImageQuestions:
    with Image.open(path) as file:
        image = file.convert("RGB")
    first = processor(images=[image], text=_texts(records[0], processor)[1], return_tensors="pt")
    ids = first["input_ids"][0].tolist()
    border = len(ids) - ids[::-1].index(processor.image_token_id)
    questions = [_question(record, processor) for record in records]
    if list(questions[0].ids) != ids[border:]:
        raise SystemExit(f"{path}: expected the image before the question, got another order")
    return ImageQuestions(first["pixel_values"], tuple(ids[:border]), tuple(questions))


def _question(record: Record, processor: Any) -> Question:
    asked, answered = _texts(record, processor)
    behind = answered.split(processor.image_token)[-1]
    ids, answer = (
        processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (behind, answered.removeprefix(asked))
    )
    return Question(tuple(ids), len(answer), question_type(record.turns[0].answer))


def _texts(record: Record, processor: Any) -> tuple[str, str]:
    """The conversation up to its answer, and with it."""
    messages = chat_messages(record.turns, 1)
    asked: str = processor.apply_chat_template(messages[:1], add_generation_prompt=True)
    answered: str = processor.apply_chat_template(messages)
    return asked, answered


class PackedBatches:
    """The micro-batch of an index: images drawn in a new order every pass, some questions of each.

    As many questions answered yes as answered no: without that a model learns the commoner answer first.

    Args:
        images: What to draw from.
        batch_size: Images of a micro-batch.
        num_questions: Questions of an image, at most.
        seed: Of order and draw.
    """

    def __init__(self, images: Sequence[ImageQuestions], batch_size: int, num_questions: int, seed: int) -> None:
        self._images = images
        self._batch_size = batch_size
        self._num_questions = num_questions
        self._seed = seed
        self._shuffled: tuple[int, list[int]] = (-1, [])

    def __call__(self, index: int) -> dict[str, Tensor]:
        """As `pack` makes it."""
        rows = []
        for position in range(index * self._batch_size, (index + 1) * self._batch_size):
            epoch, place = divmod(position, len(self._images))
            image = self._images[self._order(epoch)[place]]
            draw = random.Random((self._seed * MIXING + 1) * MIXING + position)
            rows.append((image, _drawn(image.questions, self._num_questions, draw)))
        return pack(rows)

    def _order(self, epoch: int) -> list[int]:
        if self._shuffled[0] != epoch:
            order = list(range(len(self._images)))
            random.Random(self._seed * MIXING + epoch).shuffle(order)
            self._shuffled = (epoch, order)
        return self._shuffled[1]


def _drawn(questions: Sequence[Question], most: int, draw: random.Random) -> list[Question]:
    """Some of the questions; of closed ones as many with each answer."""
    shuffled = draw.sample(questions, len(questions))
    closed: dict[tuple[int, ...], list[Question]] = {}
    for question in shuffled:
        if question.kind == "yes/no":
            closed.setdefault(question.ids[-question.num_answer :], []).append(question)
    fewest = min(map(len, closed.values())) if len(closed) > 1 else 0
    chosen = [question for same in closed.values() for question in same[:fewest]]
    chosen += [question for question in shuffled if question.kind != "yes/no"]
    return draw.sample(chosen or shuffled, min(most, len(chosen or shuffled)))


def pack(rows: Sequence[tuple[ImageQuestions, Sequence[Question]]]) -> dict[str, Tensor]:
    """input_ids, labels, position_ids [B, T], attention_mask bool [B, 1, T, T] and pixel_values of rows.

    Every question sees the image and itself; its positions go on from the image's.
    """
    length = max(len(image.prefix) + sum(len(each.ids) for each in chosen) for image, chosen in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels, segments, positions = torch.full_like(ids, IGNORED), torch.full_like(ids, -1), torch.zeros_like(ids)
    for row, (image, chosen) in enumerate(rows):
        end = len(image.prefix)
        ids[row, :end], segments[row, :end] = torch.tensor(image.prefix), 0
        positions[row, :end] = torch.arange(end)
        for number, question in enumerate(chosen, 1):
            start, end = end, end + len(question.ids)
            ids[row, start:end] = torch.tensor(question.ids)
            segments[row, start:end] = number
            positions[row, start:end] = len(image.prefix) + torch.arange(len(question.ids))
            labels[row, end - question.num_answer : end] = ids[row, end - question.num_answer : end]
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": positions,
        "attention_mask": _mask(segments),
        "pixel_values": torch.cat([image.pixels for image, _ in rows]),
    }


def _mask(segments: Tensor) -> Tensor:
    """Who may attend to whom, from segment numbers [B, T]: 0 the image, -1 padding, which sees itself alone."""
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    visible = ((key == query) | (key == 0)) & (query >= 0) & causal
    return (visible | torch.eye(segments.shape[1], dtype=torch.bool))[:, None]


@torch.no_grad()
def accuracy(model: Any, images: Sequence[ImageQuestions], batch_size: int = 50) -> dict[str, float]:
    """Share of questions answered exactly, end token included, greedily: of all and by question type.

    An answer is right when every token of it is the likeliest after those before it.
    """
    model.eval()
    hits: dict[str, list[bool]] = {"all": []}
    for start in range(0, len(images), batch_size):
        rows = [(image, image.questions) for image in images[start : start + batch_size]]
        batch = pack(rows)
        labels = batch.pop("labels")
        right = model(**batch, use_cache=False).logits[:, :-1].argmax(-1) == labels[:, 1:]
        for row, (image, questions) in enumerate(rows):
            end = len(image.prefix)
            for question in questions:
                end += len(question.ids)
                # A token is predicted one place before it.
                hit = bool(right[row, end - question.num_answer - 1 : end - 1].all())
                hits["all"].append(hit)
                hits.setdefault(question.kind, []).append(hit)
    return {kind: sum(values) / len(values) for kind, values in hits.items()}
