"""Token dropping and VCC: what the question attends to stays."""

import pytest
import torch

from stagetrain.compressors import DROPPED, Units, compressor_named
from stagetrain.compressors.vcc import num_opened

SHAPES = [(12, 3), (13, 4), (7, 2), (3, 5), (9, 1), (576, 8), (65, 8), (16, 8), (33, 4)]


def assign(name: str, scores: torch.Tensor, stride: int) -> list[list[int]]:
    states = torch.empty(*scores.shape, 0)
    return compressor_named(name).assign(Units((1, scores.shape[1]), states, scores), stride).tolist()


@pytest.mark.parametrize(("num_tokens", "stride"), SHAPES)
def test_the_tokens_of_most_attention_stay(num_tokens: int, stride: int) -> None:
    torch.manual_seed(0)
    scores = torch.rand(3, num_tokens)
    for row, slots in zip(scores.tolist(), assign("attention", scores, stride), strict=True):
        chosen = sorted(range(num_tokens), key=lambda token: -row[token])[: -(-num_tokens // stride)]
        expected = [sorted(chosen).index(token) if token in chosen else DROPPED for token in range(num_tokens)]
        assert slots == expected


def test_of_equal_attention_the_earlier_token_stays() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.5, 0.5]])
    assert assign("attention", scores, 2) == [[DROPPED, 0, 1, DROPPED]]
    assert assign("vcc", torch.ones(1, 24), 3)[0] == [0, 1, 2, 3, 4, 5, *[6] * 6, *[7] * 6, *[8] * 6]


def reference_vcc(row: list[float], stride: int) -> list[int]:
    """Slots of one unit, window by window; the number of opened windows as the ratio in the design says it."""
    windows = [list(range(start, min(start + 2 * stride, len(row)))) for start in range(0, len(row), 2 * stride)]
    whole = [window for window in windows if len(window) == 2 * stride]
    wanted = 0
    while wanted * (2 * stride - 1) < len(row) / stride - len(row) / (2 * stride):
        wanted += 1
    ranked = sorted(whole, key=lambda window: -sum(row[token] for token in window))
    slots: list[int] = []
    for window in windows:
        following = slots[-1] + 1 if slots else 0
        slots += [following + (i if window in ranked[:wanted] else 0) for i in range(len(window))]
    return slots


@pytest.mark.parametrize(("num_tokens", "stride"), SHAPES)
def test_windows_of_most_attention_stay_open(num_tokens: int, stride: int) -> None:
    torch.manual_seed(1)
    scores = torch.rand(3, num_tokens, dtype=torch.float64)
    slots = assign("vcc", scores, stride)
    assert slots == [reference_vcc(row, stride) for row in scores.tolist()]
    assert compressor_named("vcc").count((1, num_tokens), stride) == slots[0][-1] + 1


def test_vcc_has_the_number_of_tokens_that_the_paper_prints() -> None:
    """Table 2: 3582 tokens over 32 layers at layer 2; the others 3312 with the same stride of 8."""
    assert num_opened(576, 8) == 3
    assert compressor_named("vcc").count((24, 24), 8) == 33 + 48
    assert 2 * 576 + 30 * compressor_named("vcc").count((24, 24), 8) == 3582
    assert 2 * 576 + 30 * compressor_named("attention").count((24, 24), 8) == 3312
