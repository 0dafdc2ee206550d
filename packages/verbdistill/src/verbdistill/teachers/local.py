"""A teacher in this process."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from verbdistill.errors import TargetError
from verbdistill.losses.heads import Head
from verbdistill.models.parts import decoder_layers, head_of
from verbdistill.models.states import response_states
from verbdistill.models.targets import check_targets
from verbdistill.teachers.fingerprints import fingerprint_of
from verbdistill.teachers.teacher import TeacherAnswer
from verbdistill.verbalizers.verbalizers import Verbalizers


class LocalTeacher:
    """A model and its verbalizers, both only read; a `Teacher`.

    Without verbalizers its targets are the layers' own states, before the final norm: what a student is compared
    with where nothing is verbalized.
    """

    def __init__(
        self, model: nn.Module, verbalizers: Verbalizers | None, *, layers: Sequence[int] | None = None
    ) -> None:
        """Takes a model and its verbalizers, or the target layers (1-based, ascending; perhaps none).

        Raises:
            TargetError: Both are given, or neither, or the layers do not fit the model.
        """
        if (verbalizers is None) == (layers is None):
            raise TargetError("teacher: expected verbalizers or target layers, got both or neither")
        self._model = model
        self._verbalizers = verbalizers
        if verbalizers is not None:
            self._layers = verbalizers.layers
        else:
            self._layers = check_targets(layers, len(decoder_layers(model)), "teacher") if layers else ()

    @property
    def layers(self) -> tuple[int, ...]:
        """Target layers, 1-based, ascending."""
        return self._layers

    @property
    def head(self) -> Head:
        """The language head that reads its answers' features."""
        return head_of(self._model)

    @property
    def fingerprint(self) -> str:
        """64 hex digits of the model's, the verbalizers' and the targets' identity."""
        parts = {"model": self._model} | ({} if self._verbalizers is None else {"verbalizers": self._verbalizers})
        return hashlib.sha256(f"{fingerprint_of(**parts)} {self._layers}".encode()).hexdigest()

    @torch.no_grad()
    def answer(self, index: int, batch: Mapping[str, Tensor]) -> TeacherAnswer:
        """What it says of a micro-batch, which lies on any device; the model evaluates meanwhile.

        Raises:
            BatchError: No labels, or a row has no response token.
        """
        was_training = self._model.training
        self._model.eval()
        try:
            device = self.head.weight.device
            placed = {name: value.to(device) for name, value in batch.items()}
            whole = self._verbalizers is not None and self._verbalizers.reads_whole
            states = response_states(self._model, placed, self._layers, whole=whole)
            targets = states.layers if self._verbalizers is None else self._verbalizers.features(states)
        finally:
            self._model.train(was_training)
        return TeacherAnswer(targets=tuple(targets), last=states.last, labels=states.labels)
