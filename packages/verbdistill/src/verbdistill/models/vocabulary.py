"""Checks that teacher and student number their words alike."""

from collections.abc import Mapping

from verbdistill.errors import VocabularyMismatchError


def check_vocabularies(teacher: Mapping[str, int], student: Mapping[str, int]) -> None:
    """Compares two tokenizers' vocabularies (token -> id); models may pad theirs differently behind it.

    Raises:
        VocabularyMismatchError: Names the first token, in the order of ids, that is not at the same id in both.
    """
    for token, number in sorted(teacher.items(), key=lambda item: item[1]):
        if student.get(token) != number:
            raise VocabularyMismatchError(
                f"vocabulary: expected {token!r} at id {number} in the student's as in the teacher's, "
                f"got {student.get(token, 'no such token')}"
            )
    extra = sorted(set(student) - set(teacher), key=lambda token: student[token])
    if extra:
        raise VocabularyMismatchError(
            f"vocabulary: expected no token that the teacher lacks, got {extra[0]!r} at id {student[extra[0]]}"
        )
