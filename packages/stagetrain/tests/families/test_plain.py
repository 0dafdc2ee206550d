"""What must not change anything: stride 1, and an attachment that is not active."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stagetrain import CompressionSetting, attach


class Operations(TorchDispatchMode):
    """Names of the operations dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def outcome(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return [output.loss, output.logits, *(value.grad for value in model.parameters() if value.grad is not None)]


@pytest.mark.parametrize(
    ("compressor", "side", "attention"),
    [
        ("average", "left", "sdpa"),
        ("average", "right", "eager"),
        ("average_2d", "left", "eager"),
        ("random", "right", "sdpa"),
        ("k_means", "left", "sdpa"),
        ("attention", "right", "sdpa"),
    ],
)
def test_stride_1_is_the_plain_model_bit_for_bit(case: Any, compressor: str, side: str, attention: str) -> None:
    model, batch = case.model(attention=attention), case.batch(side=side, with_labels=True)
    plain = outcome(model, batch)
    attachment = attach(model)
    for layer in (0, 1, 2):
        attachment.set(CompressionSetting(layer=layer, stride=1, compressor=compressor))
        attached = outcome(model, batch)
        assert len(attached) == len(plain)
        assert all(torch.equal(first, second) for first, second in zip(attached, plain, strict=True))


def test_stride_1_without_padding_or_mask_is_the_plain_model_bit_for_bit(case: Any) -> None:
    model, batch = case.model(), case.batch(case.rows[:1], with_labels=True)
    del batch["attention_mask"]
    plain = outcome(model, batch)
    attachment = attach(model)
    for layer in (0, 1):
        attachment.set(CompressionSetting(layer=layer, stride=1))
        attached = outcome(model, batch)
        assert all(torch.equal(first, second) for first, second in zip(attached, plain, strict=True))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_cleared_model_dispatches_the_operations_of_one_never_attached(case: Any, layer: int) -> None:
    model, batch = case.model(), case.batch(with_labels=True)
    counts = []
    for attached in (False, True):
        if attached:
            attachment = attach(model)
            attachment.set(CompressionSetting(layer=layer, stride=2))
            model(**batch)
            attachment.clear()
        with Operations() as operations:
            outcome(model, batch)
        counts.append(operations.names)
    assert counts[0] == counts[1]


def test_a_detached_model_is_as_it_was(case: Any) -> None:
    model = case.model()
    before = set(model.state_dict())
    attachment = attach(model)
    attachment.set(CompressionSetting(layer=0, stride=2, compressor="q_former"))
    assert set(model.state_dict()) > before
    assert attachment.module is model.visual_compressor
    attachment.detach()
    assert set(model.state_dict()) == before
    assert attachment.setting is attachment.compressor is attachment.module is None
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
