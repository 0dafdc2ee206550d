"""Pairs of models with different tokenizers: which response tokens and which words stand for the same text.

Experimental: VLsI itself asks for one tokenizer. Two positions are compared only where both models have read
the same text of the answer (but for whitespace), so that both distributions are over what comes next in it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from verbdistill.data.batches import Batch, PairBatch
from verbdistill.data.token_texts import token_texts
from verbdistill.errors import BatchError, VocabularyMismatchError
from verbdistill.models.states import IGNORED

_WHITESPACE = b" \t\n\r\v\f"


class AlignedPairBatches:
    """Micro-batches of a pair whose tokenizers differ, with the response tokens that stand for the same text."""

    def __init__(
        self,
        teacher: Callable[[int], Batch],
        student: Callable[[int], Batch],
        teacher_tokenizer: Any,
        student_tokenizer: Any,
    ) -> None:
        """Two sources of the same conversations in the same order, and the tokenizers their labels are of."""
        self._sources = (teacher, student)
        self._texts = (token_texts(teacher_tokenizer), token_texts(student_tokenizer))

    def __call__(self, index: int) -> PairBatch:
        """The pair of a micro-batch, 0-based.

        Raises:
            BatchError: The two do not have the same number of rows, or of answers in a row, or a label is not one of
                the tokenizer's.
        """
        teacher, student = (source(index) for source in self._sources)
        answers = [
            _answers(batch["labels"], texts) for batch, texts in zip((teacher, student), self._texts, strict=True)
        ]
        if len(answers[0]) != len(answers[1]):
            raise BatchError(
                f"micro-batch {index}: expected as many student rows as the teacher's {len(answers[0])}, "
                f"got {len(answers[1])}"
            )
        pairs: list[tuple[int, int]] = []
        for row, (theirs, ours) in enumerate(zip(*answers, strict=True)):
            if len(theirs) != len(ours):
                raise BatchError(
                    f"micro-batch {index}, row {row}: expected as many answers of the student's as of the "
                    f"teacher's ({len(theirs)}), got {len(ours)}"
                )
            for (teacher_first, teacher_texts), (student_first, student_texts) in zip(theirs, ours, strict=True):
                pairs += [(teacher_first + i, student_first + j) for i, j in aligned(teacher_texts, student_texts)]
        rows = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
        return PairBatch(teacher=teacher, student=student, teacher_rows=rows[:, 0], student_rows=rows[:, 1])


def aligned(teacher: Sequence[bytes | None], student: Sequence[bytes | None]) -> list[tuple[int, int]]:
    """Pairs of tokens before which both tokenizations of one answer have the same text; ascending.

    Whitespace does not count, because tokenizers put it before, behind or beside a word; special tokens have
    no text. Where several tokens of a side stand before the same text (a space alone, the marks of the end),
    the pair that says the same is taken, special tokens counting as the same, else the first. An answer
    that reads differently on both sides (an unknown word, a lower-casing tokenizer) is aligned up to there.

    Args:
        teacher: Text of each token of the answer, None of special ones, as `token_texts` gives them.
        student: The same of the other tokenization.
    """
    texts = [b"".join(_visible(token) for token in tokens) for tokens in (teacher, student)]
    common = _common_length(*texts)
    theirs, ours = (_by_boundary(tokens, common) for tokens in (teacher, student))
    pairs = []
    for boundary, places in theirs.items():
        candidates = [(i, j) for i in places for j in ours.get(boundary, ())]
        if candidates:
            pairs.append(next((pair for pair in candidates if teacher[pair[0]] == student[pair[1]]), candidates[0]))
    return pairs


def shared_words(teacher_tokenizer: Any, student_tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Ids of the words both have, in pairs: int64 [K] of the teacher, ascending, and [K] of the student.

    Words are shared when they stand for the same text, the space before them included; special tokens when they
    have the same name, and those that end a sequence whatever their names.

    Raises:
        VocabularyMismatchError: There is none.
    """
    theirs, ours = _ids_by_text(teacher_tokenizer), _ids_by_text(student_tokenizer)
    pairs = {theirs[text]: ours[text] for text in theirs.keys() & ours.keys()}
    ends = teacher_tokenizer.eos_token_id, student_tokenizer.eos_token_id
    if None not in ends:
        pairs = {first: second for first, second in pairs.items() if first != ends[0] and second != ends[1]}
        pairs[ends[0]] = ends[1]
    if not pairs:
        raise VocabularyMismatchError("vocabulary: expected words that teacher and student share, got none")
    words = torch.tensor(sorted(pairs.items()), dtype=torch.int64)
    return words[:, 0].contiguous(), words[:, 1].contiguous()


def _answers(labels: Tensor, texts: Sequence[bytes | None]) -> list[list[tuple[int, list[bytes | None]]]]:
    """Of every row its answers: place of the first token among the batch's response tokens, and its tokens' texts."""
    # The first position's token is predicted by none.
    rows: list[list[int]] = labels[:, 1:].tolist()
    highest = max((max(row) for row in rows if row), default=IGNORED)
    if highest >= len(texts):
        raise BatchError(f"labels: expected ids of the tokenizer's {len(texts)} words, got {highest}")
    counted = 0
    found = []
    for row in rows:
        answers = []
        for ids in _runs(row):
            answers.append((counted, [texts[number] for number in ids]))
            counted += len(ids)
        found.append(answers)
    return found


def _runs(row: Sequence[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for number in [*row, IGNORED]:
        if number != IGNORED:
            run.append(number)
        elif run:
            yield run
            run = []


def _visible(token: bytes | None) -> bytes:
    return b"" if token is None else token.translate(None, _WHITESPACE)


def _common_length(first: bytes, second: bytes) -> int:
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))


def _by_boundary(tokens: Sequence[bytes | None], common: int) -> dict[int, list[int]]:
    """Tokens by the length of the text before them, as far as it is common to both."""
    found: dict[int, list[int]] = {}
    before = 0
    for place, token in enumerate(tokens):
        if before > common:
            break
        found.setdefault(before, []).append(place)
        before += len(_visible(token))
    return found


def _ids_by_text(tokenizer: Any) -> dict[bytes | str, int]:
    """Lowest id of every text; special tokens by their names, which are str, so that no text is taken for one."""
    texts = token_texts(tokenizer)
    found: dict[bytes | str, int] = {}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        text = texts[number]
        found.setdefault(token if text is None else text, number)
    return found
