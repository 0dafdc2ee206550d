"""Rows that models train and are tested on: an image, then questions that see it and themselves.

Shapes: B rows, T columns.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from auroraedge.questions import Question
from auroraedge.tiny import ASSISTANT, END, IMAGE, PAD, USER
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100
_PREFIX, _FILLER = -1, -2


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed rows for a number of image tokens.

    Attributes:
        ids: Of words.
        num_tokens: Placeholders of an image.
    """

    ids: dict[str, int]
    num_tokens: int

    def batch(self, questions: Sequence[Sequence[Question]]) -> dict[str, Tensor]:
        """Tensors of rows with one image each: input_ids, labels, position_ids [B, T], attention_mask [B, 1, T, T]."""
        rows = [self._row(each) for each in questions]
        fillers = (self.ids[PAD], IGNORED, 0, _FILLER)
        ids, labels, positions, segments = (
            pad_sequence([torch.tensor(row[place]) for row in rows], batch_first=True, padding_value=filler)
            for place, filler in enumerate(fillers)
        )
        return {
            "input_ids": ids,
            "labels": labels,
            "position_ids": positions,
            "attention_mask": packed_mask(segments),
        }

    def _row(self, questions: Sequence[Question]) -> tuple[list[int], list[int], list[int], list[int]]:
        """Ids, labels, positions and segments."""
        prefix = [self.ids[USER], *[self.ids[IMAGE]] * self.num_tokens]
        row = (list(prefix), [IGNORED] * len(prefix), list(range(len(prefix))), [_PREFIX] * len(prefix))
        for segment, question in enumerate(questions):
            asked = [*(self.ids[word] for word in question.text.split()), self.ids[ASSISTANT]]
            answer = [*(self.ids[word] for word in question.answer.split()), self.ids[END]]
            length = len(asked) + len(answer)
            parts = (
                asked + answer,
                [IGNORED] * len(asked) + answer,
                list(range(len(prefix), len(prefix) + length)),
                [segment] * length,
            )
            for column, part in zip(row, parts, strict=True):
                column.extend(part)
        return row


def packed_mask(segments_bt: Tensor) -> Tensor:
    """Bool [B, 1, T, T]: a token sees the prefix and its own segment up to itself; filler sees itself."""
    num_columns = segments_bt.shape[1]
    keys, queries = segments_bt[:, None], segments_bt[:, :, None]
    seen = ((keys == _PREFIX) | (keys == queries)) & (queries != _FILLER)
    causal = torch.ones(num_columns, num_columns, dtype=torch.bool).tril()
    return ((seen & causal) | torch.eye(num_columns, dtype=torch.bool))[:, None]


def draw(questions: Sequence[Question], number: int, source: random.Random) -> list[Question]:
    """At most `number` questions of an image, as many answered yes as no."""
    shuffled = source.sample(questions, len(questions))
    yes, no = ([each for each in shuffled if each.answer == answer] for answer in ("yes", "no"))
    units = [[each] for each in shuffled if each.answer not in ("yes", "no")]
    units += [list(pair) for pair in zip(yes, no, strict=False)]
    source.shuffle(units)
    drawn: list[Question] = []
    for unit in units:
        if len(drawn) + len(unit) <= number:
            drawn += unit
    return drawn or shuffled[:number]


def answers_right(logits: Tensor, labels: Tensor) -> list[list[bool]]:
    """Whether each answer of each row is what greedy decoding gives, end token included.

    It is when every token of it is the most likely one after those before it.
    """
    right = logits[:, :-1].argmax(-1) == labels[:, 1:]
    found = []
    for hits, wanted in zip(right.tolist(), labels.tolist(), strict=True):
        answers: list[list[bool]] = []
        for place, label in enumerate(wanted):
            if label == IGNORED:
                continue
            if wanted[place - 1] == IGNORED:
                answers.append([])
            answers[-1].append(hits[place - 1])
        found.append([all(answer) for answer in answers])
    return found
