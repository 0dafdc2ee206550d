"""ECM's search on a small model."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from quantpack import Axis, SearchError, dequantize
from quantpack.scheme import scheme_from_fields
from quantpack.search.candidates import AgqSpace
from quantpack.search.ecm import PartSearch, search_ecm
from quantpack.search.ecm_result import EcmResult
from quantpack.selection import part_of

SPACE = AgqSpace(bits=3, group_size=16, shares=(0.05, 0.1), num_channels=(1, 4, 0))


@pytest.fixture(scope="module")
def small(llava: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    return copy.deepcopy(llava).float()


@pytest.fixture(scope="module")
def samples() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.cat((torch.full((4, 64), 3), torch.randint(4, 60, (4, 8), generator=generator)), 1)
    return [{"input_ids": ids, "pixel_values": torch.randn(4, 3, 64, 64, generator=generator)}]


def search(small: nn.Module, samples: list[dict[str, torch.Tensor]], drop: float) -> tuple[EcmResult, nn.Module]:
    """Accuracy: share of next tokens that are as before."""
    model = copy.deepcopy(small)
    with torch.no_grad():
        wanted = model(**samples[0]).logits.argmax(-1)

    def accuracy(changed: nn.Module) -> float:
        with torch.no_grad():
            return float((changed(**samples[0]).logits.argmax(-1) == wanted).float().mean())

    space = {"space": SPACE, "max_drop": drop}
    parts = {"vision": PartSearch(**space, alphas=(0.0, 0.5, 1.0)), "language": PartSearch(**space)}
    return search_ecm(model, samples, accuracy, parts), model  # type: ignore[arg-type]


def test_more_accuracy_given_up_means_fewer_bytes(small: nn.Module, samples: list[dict[str, torch.Tensor]]) -> None:
    # An untrained model loses a lot on fine groups already.
    strict, model = search(small, samples, 0.5)
    loose, _ = search(small, samples, 1.0)
    for part in ("vision", "language"):
        assert loose.parts[part].chosen.cr_codes >= strict.parts[part].chosen.cr_codes
        assert strict.parts[part].agq.final.cr_codes >= strict.parts[part].agq.trials[0].cr_codes
        floor = strict.parts[part].agq.floor
        assert all(trial.accepted == (trial.accuracy >= floor) for trial in strict.parts[part].agq.trials)
    scalings = strict.parts["vision"].scalings
    assert [scaling.alpha for scaling in scalings] == [0.0, 0.5, 1.0]
    held = [scaling for scaling in scalings if scaling.accepted]
    assert strict.parts["vision"].chosen == max(held, key=lambda each: each.cr_codes)
    params = dict(model.named_parameters())
    for name, tensor in strict.quantization.tensors.items():
        assert torch.equal(params[name], dequantize(tensor))
        if part_of(name) != "other":
            assert tensor.scheme == strict.parts[part_of(name)].agq.schemes[name]
    fields = json.loads(json.dumps(strict.as_fields()))["parts"]["vision"]
    for name, number in zip(fields["matrices"], fields["chosen"], strict=True):
        assert scheme_from_fields(fields["schemes"][number], "record") == strict.parts["vision"].agq.schemes[name]
    assert fields["alpha"] == strict.parts["vision"].chosen.alpha
    assert strict.svg().startswith("<svg")
    assert strict.accuracy == strict.parts["language"].chosen.accuracy


def test_without_a_task_the_output_error_decides(small: nn.Module, samples: list[dict[str, torch.Tensor]]) -> None:
    parts = {"vision": PartSearch(space=SPACE, max_drop=0.05, alphas=(0.0, 0.3))}
    model = copy.deepcopy(small)
    seen: list[tuple[int, int, str]] = []
    found = search_ecm(model, samples, None, parts, lambda *call: seen.append(call))  # type: ignore[arg-type]
    assert {total for _, total, _ in seen} == {12}
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    assert all(note.startswith("vision: ") for *_, note in seen)
    assert [note.split(":")[1] for *_, note in seen][-2:] == [" alpha 0", " alpha 0.3"]
    vision = found.parts["vision"]
    assert vision.agq.floor == pytest.approx(0.95)
    assert vision.agq.final.accuracy >= 0.95 > vision.agq.final.accuracy - 0.05
    assert {part_of(name) for name in found.quantization.tensors} == {"vision", "language", "other"}


@pytest.mark.parametrize("axis", ["in", "out"])
def test_without_scaling_the_state_that_held_is_kept(
    small: nn.Module, samples: list[dict[str, torch.Tensor]], axis: Axis
) -> None:
    space = replace(SPACE, bits=2, axis=axis, symmetric=True)
    search = PartSearch(space=space, max_drop=1.0)
    model = copy.deepcopy(small)

    def accuracy(changed: nn.Module) -> float:
        with torch.no_grad():
            return -float(changed(**samples[0]).logits.abs().mean())

    found = search_ecm(model, samples, accuracy, {"vision": search, "language": None, "other": None})
    assert found.accuracy == found.parts["vision"].agq.final.accuracy == found.parts["vision"].chosen.accuracy


def test_a_part_given_none_is_left_alone(small: nn.Module, samples: list[dict[str, torch.Tensor]]) -> None:
    parts = {"vision": PartSearch(space=SPACE, max_drop=0.05), "language": None, "other": None}
    model = copy.deepcopy(small)
    found = search_ecm(model, samples, None, parts)  # type: ignore[arg-type]
    assert {part_of(name) for name in found.quantization.tensors} == {"vision"}
    assert found.quantization.recipe.parts["language"] is found.quantization.recipe.parts["other"] is None
    before = dict(small.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if part_of(name) == "language")


def test_nothing_to_search_is_refused(samples: list[dict[str, torch.Tensor]]) -> None:
    with pytest.raises(SearchError, match="found none"):
        search_ecm(nn.LayerNorm(3), samples)
