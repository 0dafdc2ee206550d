"""What a shard of an evaluation is, and the file that keeps its answers."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlmpress.artifact import digest_bytes, whole_file
from vlmpress_services.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Answered:
    """One question with a model's answer.

    Attributes:
        index: Of the question among those that are evaluated.
        question_type: "yes/no", "number" or "other".
        question: As it was asked.
        expected: The right answer.
        answer: The model's.
        num_visual_tokens: Visual tokens the language model saw.
    """

    index: int
    question_type: str
    question: str
    expected: str
    answer: str
    num_visual_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Questions [start, stop) of a dataset for a model, and everything their answers depend on.

    Attributes:
        model: Digest.
        dataset: Digest.
        start: First question.
        stop: One past the last.
        max_new_tokens: Longest answer.
        producer: What answers, with its version.
    """

    model: str
    dataset: str
    start: int
    stop: int
    max_new_tokens: int
    producer: str

    @property
    def digest(self) -> str:
        """SHA-256 of all fields, 64 hex digits: the name of the shard's result."""
        return digest_bytes(_canonical(asdict(self)))


def shards_of(model: str, dataset: str, num_questions: int, shard_questions: int, max_new_tokens: int) -> list[Shard]:
    """The shards of an evaluation, in order.

    Args:
        model: Digest.
        dataset: Digest.
        num_questions: At least 1.
        shard_questions: Questions of each shard but the last, at least 1.
        max_new_tokens: Longest answer, at least 1.

    Raises:
        InvalidRequestError: A number is out of its range.
    """
    numbers = {"num_questions": num_questions, "shard_questions": shard_questions, "max_new_tokens": max_new_tokens}
    for name, value in numbers.items():
        if value < 1:
            raise InvalidRequestError(f"{name}: expected at least 1, got {value}")
    return [
        Shard(
            model=model,
            dataset=dataset,
            start=start,
            stop=min(start + shard_questions, num_questions),
            max_new_tokens=max_new_tokens,
            producer=f"vlmpress-edgevlm {version('vlmpress-edgevlm')}",
        )
        for start in range(0, num_questions, shard_questions)
    ]


class ShardFolder:
    """Results on disk: one file a shard, there whole or not at all; the first one stays."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, shard: Shard) -> list[Answered] | None:
        """The shard's answers; None when there are none, or when their file is not as it was written."""
        try:
            fields = json.loads(self._file(shard).read_bytes())
            answers = fields["answers"]
            if fields["shard"] != asdict(shard) or fields["answers_sha256"] != digest_bytes(_canonical(answers)):
                return None
            return [Answered(**each) for each in answers]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def write(self, shard: Shard, answers: Sequence[Answered]) -> None:
        """Keeps the shard's answers, unless it has them.

        Raises:
            InvalidRequestError: They are not one answer to each of its questions, in order.
        """
        got = [answer.index for answer in answers]
        if got != list(range(shard.start, shard.stop)):
            raise InvalidRequestError(
                f"shard {shard.digest}: expected answers {shard.start} to {shard.stop - 1}, got {len(got)}: {got[:8]}"
            )
        if self.read(shard) is not None:
            return
        fields = [asdict(answer) for answer in answers]
        whole = {"shard": asdict(shard), "answers": fields, "answers_sha256": digest_bytes(_canonical(fields))}
        with whole_file(self._file(shard)) as file:
            file.write(_canonical(whole) + b"\n")

    def _file(self, shard: Shard) -> Path:
        return self.path / f"{shard.digest}.json"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
