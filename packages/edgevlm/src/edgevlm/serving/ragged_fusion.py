"""The edge model's fusion state for rows of different length, in a batch that rows join and leave.

Shapes: n rows, V visual tokens of the row that has most, L text tokens of the row that has most.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from edgevlm.model.fusion_cache import TEXT_VALID, FusionState
from edgevlm.serving.ragged import RaggedRows

_VISUAL_VALID = "visual_valid"


class RaggedFusionState(FusionState):
    """Keeps visual and text slots of every part in tensors of their own, rows at their own lengths.

    While no row has an image there is nothing to fuse, and `tensors` is empty. A row without an image
    that has come before brings no text slots: what the fusion makes of it is dropped.
    """

    is_croppable = False

    def __init__(self) -> None:
        nothing = torch.zeros(0, dtype=torch.long)
        super().__init__(nothing, nothing, nothing)
        self._visual: dict[str, RaggedRows] = {}
        self._text: dict[str, RaggedRows] = {}
        self._num_visual: list[int] = []
        self._num_text: list[int] = []
        self._slots_n = nothing

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(part.num_bytes for part in self._parts)

    def join(self, state: FusionState, lengths: Sequence[int]) -> None:
        """Takes a copy of the rows of a prompt's state, each with the text of its first tokens."""
        row = len(self._num_visual)
        counts = zip(_counts(self), _counts(state), strict=True)
        self._set_counts([torch.cat((own.to(new.device), new)) for own, new in counts])
        num_visual, num_text = [0] * len(lengths), [0] * len(lengths)
        if state.has_images:
            valid = state.tensors[_VISUAL_VALID]
            last = (valid * torch.arange(1, valid.shape[1] + 1, device=valid.device)).amax(1)
            num_visual = [int(count) for count in last]
            num_text = [
                length - int(count) if seen else 0
                for length, count, seen in zip(lengths, state.num_placeholders_b, num_visual, strict=True)
            ]
            for name, value in state.tensors.items():
                self._put(name, row, value, state.axes.get(name), valid.shape[1], (num_visual, num_text))
        else:
            for part in self._parts:
                part.clear(row, len(lengths))
        self._num_visual += num_visual
        self._num_text += num_text
        self._refresh()

    def leave(self, row: int) -> None:
        """Forgets a row; the last one takes its place."""
        last = len(self._num_visual) - 1
        for counts in (self._num_visual, self._num_text):
            counts[row] = counts[last]
            counts.pop()
        self._set_counts([_without(count, row) for count in _counts(self)])
        for parts, needed in ((self._visual, self._num_visual), (self._text, self._num_text)):
            for part in parts.values():
                if row != last:
                    part.move(last, row)
                part.shrink(last, max(needed, default=0) + 1)
        self._refresh()

    def text_mask(self, attention_mask: Tensor | None, num_new: int) -> Tensor | None:
        """Admits one new token of every row at the row's own slot; see `FusionState.text_mask`."""
        assert num_new == 1
        device = self.num_images_b.device
        self._slots_n = torch.tensor(self._num_text, device=device)
        self._num_text = [count + 1 for count in self._num_text]
        for part in self._text.values():
            part.reserve(len(self._num_text), max(self._num_text))
        new = torch.ones(len(self._num_text), 1, dtype=torch.bool, device=device)
        return self.append(TEXT_VALID, new, dim=1)[:, None]

    def append(self, name: str, new: Tensor, *, dim: int) -> Tensor:
        """Puts each row's new token at its own slot, and gives visual slots and text slots."""
        text = self._text[name]
        text.write(self._slots_n, new)
        whole = text.view(len(new), max(self._num_text))
        if name not in self._visual:
            return whole
        return torch.cat((self._visual[name].view(len(new), max(self._num_visual)), whole), dim=dim)

    def _put(
        self, name: str, row: int, value: Tensor, axis: int | None, total: int, counts: tuple[list[int], list[int]]
    ) -> None:
        """Splits rows of a tensor into visual slots, of which the batch they come from had `total`, and text slots."""
        if name != TEXT_VALID:
            dim = axis or (1 if name == _VISUAL_VALID else 2)
            self._visual.setdefault(name, RaggedRows(dim)).put(row, value, counts[0])
        if axis is not None:
            first = 0 if name == TEXT_VALID else total
            text = value.narrow(axis, first, value.shape[axis] - first)
            self._text.setdefault(name, RaggedRows(axis)).put(row, text, counts[1])

    def _refresh(self) -> None:
        """Shows the model what does not change until the next row joins or leaves."""
        num_rows, num_visual = len(self._num_visual), max(self._num_visual, default=0)
        self.tensors = {}
        if num_visual:
            constant = [name for name in self._visual if name not in self._text]
            self.tensors = {name: self._visual[name].view(num_rows, num_visual) for name in constant}

    @property
    def _parts(self) -> list[RaggedRows]:
        return [*self._visual.values(), *self._text.values()]

    def _set_counts(self, counts: list[Tensor]) -> None:
        self.num_placeholders_b, self.num_images_b, self.num_skipped_b = counts


def _counts(state: FusionState) -> tuple[Tensor, Tensor, Tensor]:
    """What a state counts for each row."""
    return state.num_placeholders_b, state.num_images_b, state.num_skipped_b


def _without(count_n: Tensor, row: int) -> Tensor:
    left = count_n[:-1].clone()
    if row < len(left):
        left[row] = count_n[-1]
    return left
