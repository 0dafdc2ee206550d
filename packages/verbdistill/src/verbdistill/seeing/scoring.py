"""Exact-match accuracy of a model's answers by question type, against what the question alone tells (Table 4b)."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from verbdistill.data.images import read_image
from verbdistill.data.rendering import shortened, tokenizer_of
from verbdistill.errors import BatchError
from verbdistill.seeing.asking import encode, prompt_text, search
from vlmpress.data import QuestionPrior, Record, question_type, question_types

ALL = "all"
_SEED = 0
_SPARE_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Score:
    """Share of right answers, 0 to 1, among a number of questions.

    Attributes:
        num_questions: At least 1.
        accuracy: The model's.
        prior: The commonest training answer's to the very same question; None where no training answers are known.
    """

    num_questions: int
    accuracy: float
    prior: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores under "all" and under each question type that occurs, found greedily (1) or with so many beams."""

    num_beams: int
    scores: dict[str, Score]


def questions_of(records: Iterable[Record], limit: int | None = None) -> list[Record]:
    """A record for every question outside the training split; its last turn is asked, those before are given.

    Args:
        records: Conversations.
        limit: Most questions; a larger number is drawn from, always in the same way, and keeps its order.

    Raises:
        BatchError: There is no question.
    """
    questions = [
        shortened(record, count)
        for record in records
        if record.split != "train"
        for count in range(1, len(record.turns) + 1)
    ]
    if not questions:
        raise BatchError("data: expected at least one question outside the training split, got none")
    if limit is not None and limit < len(questions):
        chosen = sorted(random.Random(_SEED).sample(range(len(questions)), limit))
        return [questions[index] for index in chosen]
    return questions


def evaluate(
    model: Any,
    processor: Any,
    questions: Sequence[Record],
    *,
    num_beams: int = 1,
    prior: QuestionPrior | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Answers all questions; right is what equals the expected answer after lower-casing and trimming.

    Args:
        model: Asked on its device, in evaluation mode, and left as it came.
        processor: Its processor (a tokenizer will do where no question has an image), with a chat template.
        questions: As `questions_of` makes them, at least one.
        num_beams: 1: greedy.
        prior: Of training records.
        batch_size: Questions asked at once.
        max_new_tokens: Longest answer; by default that of the longest expected one, and a little more.
        on_progress: Called with questions answered and all questions.

    Raises:
        BatchError: There is no chat template, or an image cannot be read.
    """
    longest = max_new_tokens or _longest(processor, questions)
    settings = search(model, processor, longest, num_beams=num_beams)
    hits: dict[str, list[bool]] = defaultdict(list)
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(questions, batch_size):
            for record, answer in zip(batch, _answers(model, processor, batch, settings), strict=True):
                expected = record.turns[-1].answer
                for kind in (ALL, question_type(expected)):
                    hits[kind].append(answer.strip().lower() == expected.strip().lower())
            if on_progress is not None:
                on_progress(len(hits[ALL]), len(questions))
    finally:
        model.train(was_training)
    return Evaluation(num_beams, _scores(hits, questions, prior))


def _scores(hits: dict[str, list[bool]], questions: Sequence[Record], prior: QuestionPrior | None) -> dict[str, Score]:
    asked = [Record(each.id, each.images, each.turns[-1:], each.split) for each in questions]
    known = {} if prior is None else prior.accuracy(asked)
    return {
        kind: Score(len(hits[kind]), sum(hits[kind]) / len(hits[kind]), known.get(kind))
        for kind in (ALL, *question_types)
        if hits[kind]
    }


@torch.inference_mode()
def _answers(model: Any, processor: Any, batch: Sequence[Record], settings: Any) -> list[str]:
    images = [[read_image(path) for path in record.images] for record in batch]
    texts = [prompt_text(processor, record.turns, len(record.images)) for record in batch]
    inputs = {name: value.to(model.device) for name, value in encode(processor, texts, images).items()}
    output = model.generate(**inputs, generation_config=settings)
    found = tokenizer_of(processor).batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [str(text) for text in found]


def _batches(questions: Sequence[Record], batch_size: int) -> Iterator[Sequence[Record]]:
    """Questions about images, then those about none; processors take no mixture."""
    for about_images in (True, False):
        chosen = [question for question in questions if bool(question.images) == about_images]
        for start in range(0, len(chosen), batch_size):
            yield chosen[start : start + batch_size]


def _longest(processor: Any, questions: Sequence[Record]) -> int:
    """Tokens to leave for an answer: the longest expected one's, its end, and a few that tell it from longer."""
    answers = sorted({question.turns[-1].answer for question in questions})
    return max(map(len, tokenizer_of(processor)(answers, add_special_tokens=False)["input_ids"])) + 1 + _SPARE_TOKENS
