"""A teacher's answers kept on disk: the likeliest words of every target and of the last layer.

N response tokens, t_l teacher targets, V words, k kept ones.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from verbdistill.errors import ConfigError, TeacherCacheError
from verbdistill.losses.chunks import DEFAULT_LOGITS_BYTES
from verbdistill.losses.heads import Head
from verbdistill.losses.truncated import likeliest_words
from verbdistill.teachers.fingerprints import sample_of, tensors_digest
from verbdistill.teachers.teacher import Teacher, TeacherAnswer, TruncatedAnswer
from vlmpress.artifact import whole_file

_FORMAT = "1"


class CachedTeacher:
    """Answers from a folder what was asked before, and keeps there what the teacher inside answers.

    <folder>/<fingerprint>/<key of the micro-batch>.safetensors: words and log_probabilities
    [t_l + 1, N, k] (the last layer last) and labels [N], in 8 k (t_l + 1) N bytes and a little. A key is made of the
    batch's content, so only a batch of the same rows, padded alike, is found again: that of a resumed run, of an
    ablation or another student with the same seed, or of a data source that does not shuffle. Another teacher,
    other targets, another k or other words never find it. Several processes may share a folder.
    """

    def __init__(
        self,
        inner: Teacher,
        folder: Path,
        k: int,
        *,
        head: Head | None = None,
        logits_bytes: int = DEFAULT_LOGITS_BYTES,
    ) -> None:
        """Keeps nothing yet.

        Args:
            inner: Asked for what is not there.
            folder: Of this cache alone; made when the first answer is kept.
            k: Words of a token that are kept; all, where there are fewer.
            head: Of the words that the student shares, cut from the inner teacher's with `first` (vocabularies that
                differ in padding) or `rows` (aligned ones); None: all of them. Kept words are counted in it.
            logits_bytes: Room for everything with a vocabulary axis.

        Raises:
            ConfigError: k is below 1.
        """
        self._inner = inner
        self._head = inner.head if head is None else head
        if k < 1:
            raise ConfigError(f"k: expected at least 1 kept word, got {k}")
        self._k = k
        self._logits_bytes = logits_bytes
        parts = {"weight": sample_of(self._head.weight)}
        if self._head.bias is not None:
            parts["bias"] = sample_of(self._head.bias)
        said = f"{_FORMAT} {inner.fingerprint} {inner.layers} {k} {self._head.num_words} {tensors_digest(parts)}"
        self._fingerprint = hashlib.sha256(said.encode()).hexdigest()
        self._folder = folder / self._fingerprint[:32]

    @property
    def layers(self) -> tuple[int, ...]:
        """Target layers, 1-based, ascending."""
        return self._inner.layers

    @property
    def head(self) -> Head:
        """The inner teacher's, with all its words."""
        return self._inner.head

    @property
    def fingerprint(self) -> str:
        """64 hex digits that change with the inner teacher's weights, its targets, k and the words."""
        return self._fingerprint

    def answer(self, index: int, batch: Mapping[str, Tensor]) -> TruncatedAnswer:
        """What the teacher says of a micro-batch; the same bits whether it was there or not.

        Raises:
            TeacherCacheError: The file of this micro-batch is damaged, or none can be written.
        """
        key = tensors_digest(batch)
        file = self._folder / f"{key}.safetensors"
        if file.exists():
            return self._placed(_read(file, key))
        answer = self._inner.answer(index, batch)
        if isinstance(answer, TruncatedAnswer):
            raise TeacherCacheError(f"micro-batch {index}: expected whole answers of the inner teacher, got truncated")
        tensors = self._truncated(answer)
        _write(file, key, tensors)
        return self._placed(tensors)

    def _truncated(self, answer: TeacherAnswer) -> dict[str, Tensor]:
        """Words int32 [t_l + 1, N, k], log_probabilities float32 of the same shape, labels [N]."""
        kept = [
            likeliest_words(part, self._head, self._k, logits_bytes=self._logits_bytes)
            for part in (*answer.targets, answer.last)
        ]
        return {
            "words": torch.stack([words for words, _ in kept]).int().cpu(),
            "log_probabilities": torch.stack([values for _, values in kept]).cpu(),
            "labels": answer.labels.cpu(),
        }

    def _placed(self, tensors: Mapping[str, Tensor]) -> TruncatedAnswer:
        device = self._head.weight.device
        return TruncatedAnswer(
            words=tuple(tensors["words"].to(device, torch.int64)),
            log_probabilities=tuple(tensors["log_probabilities"].to(device)),
            labels=tensors["labels"].to(device),
        )


def _read(file: Path, key: str) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as opened:
            said = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise TeacherCacheError(f"{file}: expected a kept answer, got {error}; remove it to ask again") from error
    if said.get("key") != key or said.get("sha256") != tensors_digest(tensors):
        raise TeacherCacheError(f"{file}: expected a kept answer with the digest it names, got other bytes; remove it")
    return tensors


def _write(file: Path, key: str, tensors: Mapping[str, Tensor]) -> None:
    said = {"key": key, "sha256": tensors_digest(tensors)}
    try:
        with whole_file(file) as opened:
            opened.write(save({name: value.contiguous() for name, value in tensors.items()}, said))
    except OSError as error:
        raise TeacherCacheError(f"{file}: expected a place to keep an answer, got {error}") from error
