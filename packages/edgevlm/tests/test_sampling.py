import math

import pytest
import torch

from edgevlm.errors import RequestError
from edgevlm.serving.requests import GREEDY, MAX_SEED, Sampling
from edgevlm.serving.sampling import Sampler, next_tokens

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
CPU = torch.device("cpu")


def shares(sampling, num_draws=4000):
    sampler = Sampler(sampling, CPU)
    counts = torch.bincount(torch.tensor([sampler.draw(LOGITS) for _ in range(num_draws)]), minlength=4)
    return (counts / num_draws).tolist()


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (1.0, 0.5, [1, 0, 0, 0]),
        (1.0, 0.51, [0.625, 0.375, 0, 0]),
        (1.0, 0.8, [0.625, 0.375, 0, 0]),
        (0.5, 1.0, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (1e-3, 1.0, [1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_probabilities(temperature, top_p, expected):
    drawn = shares(Sampling(temperature=temperature, top_p=top_p, seed=1))
    assert drawn == pytest.approx(expected, abs=0.03)
    assert all(share == 0 for share, wanted in zip(drawn, expected, strict=True) if wanted == 0)


def test_a_seed_gives_the_same_draws_and_none_gives_others():
    def draws(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), CPU)
        return [sampler.draw(LOGITS) for _ in range(60)]

    assert draws(7) == draws(7) != draws(8)
    assert draws(None) != draws(None)
    assert len(draws(MAX_SEED)) == 60


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    Sampler(Sampling(temperature=1.0), CPU).draw(LOGITS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_row_without_numbers_fails_alone():
    broken = torch.full((4,), torch.nan)
    hot = Sampling(temperature=1.0, seed=0)
    chosen = next_tokens(
        torch.stack((LOGITS, broken, LOGITS)), [Sampler(GREEDY, CPU), Sampler(hot, CPU), Sampler(hot, CPU)]
    )
    assert chosen[0] == 0
    assert isinstance(chosen[1], RuntimeError)
    assert chosen[2] in range(4)


@pytest.mark.parametrize("fields", [
    {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_p": 0}, {"top_p": 1.1},
    {"top_p": math.nan}, {"seed": -1}, {"seed": MAX_SEED + 1},
])  # fmt: skip
def test_bad_sampling(fields):
    with pytest.raises(RequestError, match="expected"):
        Sampling(**fields)
