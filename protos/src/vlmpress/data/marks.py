"""Where the questions of a conversation say that its images go."""

import re
from collections.abc import Sequence

from vlmpress.data.errors import DataError
from vlmpress.data.records import IMAGE_MARK

VIDEO_MARK = "<video>"
"""Stands for all frames of a video."""

_LEADING = re.compile(rf"\A(\s*{IMAGE_MARK})+")
_TRAILING = re.compile(rf"({IMAGE_MARK}\s*)+\Z")


def place_marks(place: str, questions: Sequence[str], num_images: int, *, video: bool) -> list[str]:
    """Questions with one IMAGE_MARK for each image, or without any where the images may stand anywhere.

    Marks that all stand at the very beginning of the first question, or all at its very end, say no more than that
    there are images: they are dropped. A video's one mark becomes those of its frames.

    Args:
        place: File and line, for messages.
        questions: As the file has them.
        num_images: Of the whole conversation.
        video: Whether they are the frames of a video.

    Raises:
        DataError: The marks are not as many as the images.
    """
    if video:
        questions = _for_frames(place, questions, num_images)
    elif any(VIDEO_MARK in text for text in questions):
        raise DataError(f"{place}: expected no {VIDEO_MARK} where no video is given, got one")
    num_marks = sum(text.count(IMAGE_MARK) for text in questions)
    if num_marks not in (0, num_images):
        raise DataError(f"{place}: expected as many {IMAGE_MARK} as images ({num_images}) or none, got {num_marks}")
    first, *rest = questions
    for pattern in (_LEADING, _TRAILING):
        bare = pattern.sub("", first)
        if first.count(IMAGE_MARK) == num_marks and IMAGE_MARK not in bare:
            first = bare
    return [text.strip() for text in (first, *rest)]


def _for_frames(place: str, questions: Sequence[str], num_images: int) -> list[str]:
    """Some files mark a video as if it were one image."""
    num_marks = sum(text.count(mark) for text in questions for mark in (IMAGE_MARK, VIDEO_MARK))
    if num_marks > 1:
        raise DataError(f"{place}: expected one {VIDEO_MARK} or none, got {num_marks} marks")
    frames = IMAGE_MARK * num_images
    return [text.replace(IMAGE_MARK, VIDEO_MARK).replace(VIDEO_MARK, frames) for text in questions]
