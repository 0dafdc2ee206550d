"""The AGQ search on made-up accuracies, against what an exhaustive look would say."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from quantpack import Scheme
from quantpack.affine import dequantize
from quantpack.calibration.sites import Activations, Site
from quantpack.errors import SearchError
from quantpack.search.agq import AgqResult, search_agq
from quantpack.search.candidates import AgqSpace, candidates, output_error, quantize_one
from quantpack.search.sizing import size_of


def make_site(names: tuple[str, ...], seed: int = 0, num_inputs: int = 96, num_outputs: int = 80) -> Site:
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(64, num_inputs, generator=generator) * torch.logspace(0, 1.5, num_inputs)
    weights = {
        name: torch.randn(num_outputs, num_inputs, generator=generator)
        * torch.rand(num_outputs, 1, generator=generator).exp()
        for name in names
    }
    activations = Activations(
        num_tokens=64,
        max_abs=samples.abs().amax(0),
        mean_abs=samples.abs().mean(0),
        second_moment=None,
        samples=samples,
        is_visual=torch.zeros(64, dtype=torch.bool),
    )
    return Site(weights=weights, schemes=dict.fromkeys(names, Scheme()), activations=activations, scalable=False)


@pytest.mark.parametrize("axis", ["out", "in"])
def test_candidates_go_from_fine_to_coarse(axis: str) -> None:
    site = make_site(("w",))
    space = AgqSpace(group_size=32, axis=axis)  # type: ignore[arg-type]
    found = candidates(site, "w", space)
    assert found[0].scheme == space.schemes()[0]
    sizes = [candidate.size.num_bytes for candidate in found]
    errors = [candidate.error for candidate in found[1:]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert errors == sorted(errors)
    # Nothing of the space is both smaller and better than what is offered.
    for scheme in space.schemes()[1:]:
        quantized = quantize_one(site, "w", scheme)
        error = output_error(site.weights["w"], dequantize(quantized), site.activations.samples)
        size = size_of(quantized).num_bytes
        if size < sizes[0]:
            assert any(each.size.num_bytes <= size and each.error <= error for each in found[1:])


def test_output_error_equals_a_loop() -> None:
    torch.manual_seed(0)
    weight, other, samples = torch.randn(5, 7), torch.randn(5, 7), torch.randn(11, 7)
    lost = power = 0.0
    for token in samples.double():
        for row, wrong in zip(weight.double(), other.double(), strict=True):
            power += float(token @ row) ** 2
            lost += float(token @ (wrong - row)) ** 2
    assert output_error(weight, other, samples) == pytest.approx(lost / power)
    assert output_error(weight, other, samples[:0]) == pytest.approx(
        float((weight - other).square().sum() / weight.square().sum())
    )
    assert output_error(weight * 0, other, samples) == 0


def run(sensitive: set[str], floor: float = 0.9) -> tuple[AgqResult, int]:
    """Accuracy falls below the floor whenever a sensitive matrix has more than 10% output error."""
    names = tuple(f"layers.{number}.weight" for number in range(9))
    sites = [make_site(names[:4], seed=1), make_site(names[4:], seed=2)]
    own = {name: site for site in sites for name in site.weights}
    calls = 0

    def evaluate(weights: Mapping[str, Tensor]) -> float:
        nonlocal calls
        calls += 1
        assert weights.keys() == own.keys()
        errors = {
            name: output_error(own[name].weights[name], restored, own[name].activations.samples)
            for name, restored in weights.items()
        }
        return 0.5 if any(errors[name] > 0.011 for name in sensitive) else 0.95

    return search_agq(sites, evaluate, floor, AgqSpace(group_size=32)), calls


def test_everything_gets_coarsest_where_nothing_hurts() -> None:
    result, calls = run(set())
    own = make_site(tuple(f"layers.{number}.weight" for number in range(4)), seed=1)
    for name in own.weights:
        assert result.schemes[name] == candidates(own, name, AgqSpace(group_size=32))[-1].scheme
    assert all(trial.accepted for trial in result.trials)
    assert calls == len(result.trials) <= 34
    ratios = [trial.cr_codes for trial in result.trials]
    assert ratios[-1] > ratios[0]


def test_only_what_hurts_stays_fine() -> None:
    free, _ = run(set())
    hurting = {"layers.2.weight", "layers.7.weight"}
    result, calls = run(hurting)
    for name, scheme in result.schemes.items():
        assert (scheme == free.schemes[name]) == (name not in hurting)
    assert result.final.accuracy == 0.95
    assert calls < 9 * 33
    assert {trial.accepted for trial in result.trials} == {True, False}
    assert result.trials[0].changed == ()


def test_a_floor_that_the_start_breaks_is_refused() -> None:
    with pytest.raises(SearchError, match=r"at least 0\.9900, groups of 32 everywhere give 0\.9500"):
        run(set(), floor=0.99)
    with pytest.raises(SearchError, match="at least one matrix"):
        search_agq([], lambda _: 1.0, 0.5)
