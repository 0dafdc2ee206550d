"""What holds for every compressor."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagetrain.compressors import COMPRESSORS, DROPPED, Units, compressor_named
from stagetrain.errors import UnknownCompressorError

DROPPING = {"random", "attention"}


def make_units(sides: tuple[int, int], num_units: int, seed: int, alike: bool = False) -> Units:
    torch.manual_seed(seed)
    num_tokens = sides[0] * sides[1]
    states, scores = torch.randn(num_units, num_tokens, 5), torch.rand(num_units, num_tokens)
    if alike:
        states, scores = torch.ones_like(states), torch.ones_like(scores)
    return Units(sides, states, scores, torch.Generator().manual_seed(seed))


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(COMPRESSORS),
    sides=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.integers(1, 60),
    num_units=st.integers(1, 3),
    alike=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_slot_has_a_token(
    name: str, sides: tuple[int, int], stride: int, num_units: int, alike: bool, seed: int
) -> None:
    compressor = compressor_named(name)
    slots = compressor.assign(make_units(sides, num_units, seed, alike), stride)
    count = compressor.count(sides, stride)
    assert slots.shape == (num_units, sides[0] * sides[1])
    assert slots.dtype == torch.int64
    assert 1 <= count <= sides[0] * sides[1]
    for row in slots.tolist():
        assert set(row) - {DROPPED} == set(range(count))
        assert name in DROPPING or DROPPED not in row
        if name in DROPPING:
            assert len(row) - row.count(DROPPED) == count
    if stride == 1:
        assert count == sides[0] * sides[1]


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize(("sides", "stride"), [((4, 6), 5), ((1, 13), 4), ((3, 3), 2), ((2, 2), 9)])
def test_a_unit_does_not_depend_on_the_others(name: str, sides: tuple[int, int], stride: int) -> None:
    compressor, units = compressor_named(name), make_units(sides, 4, 7)
    together = compressor.assign(units, stride)
    assert torch.equal(together, compressor.assign(units, stride))
    for index in range(4):
        assert units.scores is not None
        alone = Units(sides, units.states[index : index + 1], units.scores[index : index + 1], units.generator)
        assert torch.equal(compressor.assign(alone, stride)[0], together[index])


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name not in ("vcc", "average_2d")])
def test_a_remainder_makes_one_more_slot(name: str) -> None:
    assert compressor_named(name).count((1, 577), 8) == math.ceil(577 / 8) == 73


@pytest.mark.parametrize("name", COMPRESSORS)
def test_what_is_looked_at_is_what_is_said(name: str) -> None:
    """Scores only where they are asked for, states only in k-means; nothing gets a gradient."""
    compressor, units = compressor_named(name), make_units((4, 4), 2, 0)
    states = torch.empty(2, 16, 0) if name != "k_means" else units.states.clone().requires_grad_()
    scores = units.scores if compressor.needs_scores else None
    slots = compressor.assign(Units((4, 4), states, scores, units.generator), 3)
    assert torch.equal(slots, compressor.assign(units, 3))
    assert not slots.requires_grad


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownCompressorError, match=r"expected one of average, .*, got 'max'"):
        compressor_named("max")


def test_only_query_transformers_are_learned() -> None:
    for name in COMPRESSORS:
        compressor = compressor_named(name)
        assert compressor.is_learned == name.startswith("q_former")
        with torch.device("meta"):
            assert (compressor.build(8, 2) is not None) == compressor.is_learned
