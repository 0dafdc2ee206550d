"""easy-VQA: one shape an image, as its records give it."""

import re
from pathlib import Path

import numpy as np
import torch
from auroraedge.questions import SIDE, Question, Questions, Split
from PIL import Image

from vlmpress.data import Record, load_records, question_type, split_records

EASY_VQA = Path(__file__).resolve().parents[4] / ".." / "shared" / "data" / "easy_vqa" / "vqa.jsonl"


def easy_vqa(num_train: int, num_test: int, file: Path = EASY_VQA) -> Questions:
    """The first images of both splits; what an image shows is known from the answers to its open questions."""
    train, test = split_records(load_records(file, None), seed=0)
    words = {group: tuple(sorted(_answers(train, group))) for group in ("color", "shape")}
    splits = (_split(records, number, words) for records, number in ((train, num_train), (test, num_test)))
    return Questions(name="easy-vqa", train=next(splits), test=next(splits), words=words)


def _group(text: str) -> str:
    return "color" if "color" in text.split() else "shape"


def _answers(records: list[Record], group: str) -> set[str]:
    turns = [record.turns[0] for record in records]
    open_turns = [turn for turn in turns if question_type(turn.answer) != "yes/no"]
    return {turn.answer for turn in open_turns if _group(_plain(turn.question)) == group}


def _split(records: list[Record], number: int, words: dict[str, tuple[str, ...]]) -> Split:
    of_image: dict[Path, list[Record]] = {}
    for record in records:
        of_image.setdefault(record.images[0], []).append(record)
    chosen = dict(list(of_image.items())[:number])
    pixels = np.stack([np.array(Image.open(path).convert("RGB").resize((SIDE, SIDE))) for path in chosen])
    questions = [[_question(record) for record in each] for each in chosen.values()]
    labels = {group: torch.full((len(chosen), 1), -1) for group in words}
    for row, asked in enumerate(questions):
        for question in asked:
            group = _group(question.text)
            if question.kind != "yes/no":
                labels[group][row] = words[group].index(question.answer)
    return Split(pixels=pixels, questions=questions, labels=labels, objects=labels)


def _question(record: Record) -> Question:
    turn = record.turns[0]
    return Question(question_type(turn.answer), _plain(turn.question), turn.answer)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9-]+", text.lower()))
