import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantpack import CalibrationError
from quantpack.calibration.observing import NUM_SAMPLES, Observer


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=4), num_inputs=st.integers(1, 5))
def test_as_from_all_tokens_at_once(sizes: list[int], num_inputs: int) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    batches = [torch.randn(size, num_inputs, generator=generator) for size in (*sizes, 1)]
    visual = [torch.rand(len(batch), generator=generator) < 0.3 for batch in batches]
    observer = Observer(num_inputs, second_moment=True)
    for batch, is_visual in zip(batches, visual, strict=True):
        observer.add(batch, is_visual, "here")
    tokens, is_visual = torch.cat(batches).double(), torch.cat(visual)
    found = observer.result()
    assert found.num_tokens == len(tokens)
    torch.testing.assert_close(found.max_abs.double(), tokens.abs().amax(0))
    torch.testing.assert_close(found.mean_abs.double(), tokens.abs().mean(0), rtol=1e-5, atol=1e-6)
    assert found.second_moment is not None
    torch.testing.assert_close(found.second_moment.double(), tokens.T @ tokens / len(tokens), rtol=1e-3, atol=1e-4)
    assert found.samples.shape == (min(len(tokens), NUM_SAMPLES), num_inputs)
    # Sampled tokens are tokens, in order, and keep their mark.
    at = [int((tokens.float() == sample).all(1).nonzero()[0]) for sample in found.samples]
    assert at == sorted(at)
    assert torch.equal(is_visual[at], found.is_visual)


def test_samples_come_evenly_from_all_tokens() -> None:
    observer = Observer(1, second_moment=False)
    for begin in range(0, 20_000, 1000):
        observer.add(torch.arange(begin, begin + 1000.0)[:, None], torch.zeros(1000, dtype=torch.bool), "here")
    places = observer.result().samples[:, 0]
    quarters = torch.histc(places, bins=4, min=0, max=20_000)
    # 128 +- 4 standard deviations.
    assert quarters.min() > 128 - 40
    assert quarters.max() < 128 + 40


def test_same_tokens_give_the_same_sample_however_they_are_cut() -> None:
    tokens, marks = (
        torch.randn(3000, 2, generator=torch.Generator().manual_seed(0)),
        torch.zeros(3000, dtype=torch.bool),
    )
    whole, parts = Observer(2, second_moment=False), Observer(2, second_moment=False)
    whole.add(tokens, marks, "here")
    for part in tokens.split(700):
        parts.add(part, marks[: len(part)], "here")
    assert torch.equal(whole.result().samples, parts.result().samples)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_tokens_that_are_not_finite_are_refused(value: float) -> None:
    tokens = torch.zeros(3, 2)
    tokens[1, 1] = value
    with pytest.raises(CalibrationError, match="here: expected finite activations"):
        Observer(2, second_moment=False).add(tokens, torch.zeros(3, dtype=torch.bool), "here")


def test_no_second_moment_unless_asked_for() -> None:
    observer = Observer(2, second_moment=False)
    observer.add(torch.ones(1, 2), torch.ones(1, dtype=torch.bool), "here")
    assert observer.result().second_moment is None
