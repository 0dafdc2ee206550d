"""Several texts in one row, told apart by a mask or by positions."""

from typing import Any

import pytest
import torch

from stagetrain import CompressionSetting, attach


def packed(case: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two questions behind one image in a row, a shorter row besides; and each of them as a row of its own."""
    prefix, answers = case.batch(("ti",)), (torch.tensor([7, 8, 9]), torch.tensor([11, 12]))
    start = prefix["input_ids"].shape[1]
    ids = torch.cat([prefix["input_ids"][0], *answers])
    segment = torch.tensor([0] * start + [1] * 3 + [2] * 2)
    positions = torch.cat([torch.arange(start), start + torch.arange(3), start + torch.arange(2)])
    length = len(ids)
    allowed = ((segment[:, None] == segment) | (segment == 0)) & torch.ones(length, length, dtype=torch.bool).tril()
    short = start + 3
    other = torch.zeros(length, length, dtype=torch.bool)
    other[:short, :short] = torch.ones(short, short, dtype=torch.bool).tril()
    other |= torch.eye(length, dtype=torch.bool)
    padded = torch.cat([ids[:short], torch.zeros(length - short, dtype=ids.dtype)])
    batch = {
        "input_ids": torch.stack([ids, padded]),
        "attention_mask": torch.stack([allowed, other])[:, None],
        "position_ids": torch.stack([positions, torch.arange(length)]),
        "pixel_values": prefix["pixel_values"].repeat(2, 1, 1, 1),
    }
    alone = [
        {"input_ids": torch.cat([prefix["input_ids"][0], answer])[None], "pixel_values": prefix["pixel_values"]}
        for answer in answers
    ]
    return batch, alone


@pytest.mark.parametrize("compressor", ["average", "average_2d", "random", "k_means"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_packed_questions_are_those_of_rows_of_their_own(
    cases: dict[str, Any], name: str, layer: int, compressor: str
) -> None:
    case = cases[name]
    model, (batch, alone) = case.model(), packed(case)
    attach(model).set(CompressionSetting(layer=layer, stride=2, compressor=compressor))
    with torch.no_grad():
        logits = model(**batch).logits
        first, second = (model(**each).logits[0] for each in alone)
    assert logits.shape[1] < batch["input_ids"].shape[1]
    torch.testing.assert_close(logits[0, -2:], second[-2:], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(logits[0, -5:-2], first[-3:], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(logits[1, -5:-2], first[-3:], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_rows_packed_by_positions_alone_stay_apart(cases: dict[str, Any], layer: int) -> None:
    case = cases["llava"]
    model, one = case.model(), case.batch(("titt",))
    attach(model).set(CompressionSetting(layer=layer, stride=2))
    length = one["input_ids"].shape[1]
    twice = {
        "input_ids": one["input_ids"].repeat(1, 2),
        "position_ids": torch.arange(length).repeat(2)[None],
        "pixel_values": one["pixel_values"].repeat(2, 1, 1, 1),
    }
    with torch.no_grad():
        expected = model(**one).logits
        found = model(**twice, use_cache=False).logits
    torch.testing.assert_close(found, expected.repeat(1, 2, 1), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_positions_that_jump_are_no_packed_rows_where_there_is_a_cache(cases: dict[str, Any], layer: int) -> None:
    case = cases["llava"]
    model, batch = case.model(), case.batch(("titt",))
    attach(model).set(CompressionSetting(layer=layer, stride=2))
    batch["position_ids"] = 3 * torch.arange(batch["input_ids"].shape[1])[None]
    with torch.no_grad():
        expected = model(**batch, use_cache=True).logits
        del batch["attention_mask"]
        torch.testing.assert_close(model(**batch, use_cache=True).logits, expected)
