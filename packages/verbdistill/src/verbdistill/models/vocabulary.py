"""Whether teacher and student number their words alike."""

from collections.abc import Mapping

from torch import Tensor

from verbdistill.errors import BatchError, VocabularyMismatchError

_OPT_IN = "alignment: shared_words or sorted takes such pairs, experimentally"


def check_vocabularies(teacher: Mapping[str, int], student: Mapping[str, int]) -> None:
    """Compares two tokenizers' vocabularies (token -> id); models may pad theirs differently behind it.

    Raises:
        VocabularyMismatchError: Names the first token, in the order of ids, that is not at the same id in both,
            how many there are, and the opt-in for pairs whose tokenizers differ.
    """
    differing = [token for token in teacher.keys() | student.keys() if teacher.get(token) != student.get(token)]
    if not differing:
        return
    # The teacher's in the order of ids, then the student's own.
    token = min(differing, key=lambda token: (token not in teacher, teacher.get(token, student.get(token, 0))))
    found = f"{student[token]}" if token in student else "no such token"
    what = (
        f"expected {token!r} at id {teacher[token]} in the student's as in the teacher's, got {found}"
        if token in teacher
        else f"expected no token that the teacher lacks, got {token!r} at id {found}"
    )
    raise VocabularyMismatchError(f"vocabulary: {what} ({len(differing)} tokens differ; {_OPT_IN})")


def shared_prefix(teacher_size: int, student_size: int, labels: Tensor) -> int:
    """Number of words two heads share, where they may differ in padding at the end; labels [N] are response tokens.

    Raises:
        BatchError: There is no response token.
        VocabularyMismatchError: A response token lies beyond it, so the rest is no padding.
    """
    size = min(teacher_size, student_size)
    if labels.numel() == 0:
        raise BatchError("labels: expected at least one response token, got none")
    highest = int(labels.max())
    if highest >= size:
        raise VocabularyMismatchError(
            f"labels: expected token ids below the shared vocabulary of {size} (teacher {teacher_size}, "
            f"student {student_size}), got {highest}"
        )
    return size
