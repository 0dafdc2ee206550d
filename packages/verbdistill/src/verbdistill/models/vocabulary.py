"""Whether teacher and student number their words alike."""

from collections.abc import Mapping

from verbdistill.errors import VocabularyMismatchError

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
