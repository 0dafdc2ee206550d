"""Parts of a trained model switched off, to see which path carries the image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from auroraedge.fitting import Encoded, Subject, accuracy
from torch import Tensor


def switched(subject: Subject, encoded: Encoded, number: int) -> dict[str, float]:
    """Accuracy over the first images with everything on, and with one path off or showing another image."""
    model = subject.model.model
    branches = {"cross": list(model.fusion.cross), "decoder": list(model.fusion.decoder)}
    found = {"whole": accuracy(subject, encoded, number)["all"]}
    for name, blocks in branches.items():
        if blocks:
            with _closed(blocks):
                found[f"{name} off"] = accuracy(subject, encoded, number)["all"]
    with _closed(branches["cross"] + branches["decoder"]):
        found["fusion off"] = accuracy(subject, encoded, number)["all"]
    changes: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        "tokens zero": ("pooler_output", torch.zeros_like),
        "tokens of another": ("pooler_output", lambda tokens: tokens.roll(1, 0)),
        "fusion sees another": ("last_hidden_state", lambda tokens: tokens.roll(1, 0)),
    }
    for name, (field, change) in changes.items():
        with _changed(model, field, change):
            found[name] = accuracy(subject, encoded, number)["all"]
    return found


@contextmanager
def _closed(blocks: list[Any]) -> Iterator[None]:
    """Gates at 0."""
    gates = [gate for block in blocks for name, gate in block.named_parameters(recurse=False) if name.endswith("gate")]
    values = [gate.detach().clone() for gate in gates]
    with torch.no_grad():
        for gate in gates:
            gate.zero_()
        try:
            yield
        finally:
            for gate, value in zip(gates, values, strict=True):
                gate.copy_(value)


@contextmanager
def _changed(model: Any, field: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """One field of what the model makes of its images, changed."""
    plain = model.image_output

    def changed(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        setattr(output, field, change(getattr(output, field)))
        return output

    model.image_output = changed
    try:
        yield
    finally:
        del model.image_output
