"""What real calibration data and models of one's own bring: mixed batches, padding, odd stacks, mistakes."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantpack import CalibrationError, Scheme, quantize_tensor
from quantpack.calibration.sites import Site, SiteResult
from quantpack.calibration.walk import walk
from quantpack.selection import is_linear_weight

Sample = dict[str, Any]


class Nearest:
    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}

    def __call__(self, site: Site) -> SiteResult:
        self.sites[next(iter(site.weights))] = site
        return SiteResult(quantized={n: quantize_tensor(w, site.schemes[n], name=n) for n, w in site.weights.items()})


def schemes_of(model: nn.Module) -> dict[str, Scheme]:
    scheme = Scheme(granularity="channel")
    return {name: scheme for name, p in model.named_parameters() if is_linear_weight(name, tuple(p.shape))}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def mixed(tiny: Any) -> list[Sample]:
    """Text alone first, then two images in one row, then a padded batch of two rows with an image each."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(4, 3, 16, 16, generator=generator)
    two = tiny.prompt("llava", 4, generator, images=2)
    long, short = tiny.prompt("llava", 9, generator), tiny.prompt("llava", 5, generator)
    padded = torch.cat((long, torch.cat((torch.zeros(1, 4, dtype=torch.int64), short), dim=1)))
    mask = (padded != 0).long()
    return [
        tiny.text_only(),
        {"input_ids": two, "attention_mask": torch.ones_like(two), "pixel_values": pixels[:2]},
        {"input_ids": padded, "attention_mask": mask, "pixel_values": pixels[2:]},
    ]


def test_mixed_batches(tiny: Any) -> None:
    model, visit = tiny.build("llava"), Nearest()
    samples = mixed(tiny)
    report = walk(model, samples, visit, schemes=schemes_of(model))
    assert report.unreached == ()
    order = list(report.visited)
    assert order.index("model.vision_tower.encoder.layers.0.mlp.fc1.weight") < order.index(
        "model.multi_modal_projector.linear_1.weight"
    )
    assert order.index("model.multi_modal_projector.linear_2.weight") < order.index(
        "model.language_model.layers.0.mlp.up_proj.weight"
    )
    text = visit.sites["model.language_model.layers.1.self_attn.q_proj.weight"].activations
    masks = [s["attention_mask"] for s in samples]
    ids = torch.cat([s["input_ids"].flatten()[m.flatten().bool()] for s, m in zip(samples, masks, strict=True)])
    assert text.num_tokens == len(ids) == len(text.samples)
    assert torch.equal(text.is_visual, ids == tiny.IMAGE)
    tower = visit.sites["model.vision_tower.encoder.layers.1.self_attn.q_proj.weight"].activations
    assert tower.num_tokens == 4 * 17
    assert tower.is_visual.all()
    assert visit.sites["model.multi_modal_projector.linear_1.weight"].activations.num_tokens == 4 * 16


def test_a_tower_without_images_is_left_alone(tiny: Any) -> None:
    model, visit = tiny.build("llava"), Nearest()
    before = state_of(model)
    report = walk(model, [tiny.text_only()], visit, schemes=schemes_of(model))
    assert {name.split(".")[1] for name in report.unreached} == {"vision_tower", "multi_modal_projector"}
    assert all(torch.equal(before[name], dict(model.named_parameters())[name]) for name in report.unreached)


@pytest.mark.parametrize("sequential", [False, True])
def test_second_moments_only_when_asked_and_sites_in_their_order(tiny: Any, sequential: bool) -> None:
    model, visit = tiny.build("llava"), Nearest()
    samples = [tiny.sample("llava", seed=s) for s in range(2)]
    walk(model, samples, visit, schemes=schemes_of(model), needs_second_moment=True, sequential_sites=sequential)
    stem = "model.language_model.layers.0."
    names = [name.removeprefix(stem) for name in visit.sites if name.startswith(stem)]
    in_order = ["self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.gate_proj.weight", "mlp.down_proj.weight"]
    assert names == (in_order if sequential else in_order[::-1])
    site = visit.sites[f"{stem}mlp.down_proj.weight"]
    moment = site.activations.second_moment
    assert moment is not None
    expected = site.activations.samples.double()
    torch.testing.assert_close(moment.double(), expected.T @ expected / len(expected), rtol=1e-4, atol=1e-4)
    # up_proj has its codes by then.
    assert site.scalable is not sequential
    other = Nearest()
    walk(tiny.build("llava"), samples, other, schemes=schemes_of(model))
    assert all(site.activations.second_moment is None for site in other.sites.values())


def test_sequential_sites_see_the_first_half_of_their_layer_quantized(tiny: Any) -> None:
    model, reference, visit = tiny.build("llava"), tiny.build("llava"), Nearest()
    samples = [tiny.text_only(num_text=20)]
    walk(model, samples, visit, schemes=schemes_of(model), sequential_sites=True)
    finished = dict(model.named_parameters())
    with torch.no_grad():
        for name, param in reference.named_parameters():
            if "language_model.layers.0.self_attn" in name:
                param.copy_(finished[name])
    seen = []
    mlp = reference.get_submodule("model.language_model.layers.0.mlp.gate_proj")
    mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
    with torch.no_grad():
        reference(**samples[0])
    found = visit.sites["model.language_model.layers.0.mlp.gate_proj.weight"].activations
    torch.testing.assert_close(found.samples, seen[0], rtol=1e-5, atol=1e-6)


def test_a_layer_kept_out_of_the_schemes_takes_its_site_the_factor(tiny: Any) -> None:
    model, visit = tiny.build("llava"), Nearest()
    schemes = schemes_of(model)
    kept = "model.language_model.layers.0.self_attn.k_proj.weight"
    del schemes[kept]
    before = state_of(model)[kept]
    walk(model, [tiny.sample("llava")], visit, schemes=schemes)
    site = visit.sites["model.language_model.layers.0.self_attn.q_proj.weight"]
    assert not site.scalable
    assert len(site.weights) == 2
    assert visit.sites["model.language_model.layers.1.self_attn.q_proj.weight"].scalable
    assert torch.equal(dict(model.named_parameters())[kept], before)


def test_visual_weights_and_progress_are_passed_on(tiny: Any) -> None:
    model, visit = tiny.build("llava"), Nearest()
    name = "model.language_model.layers.0.mlp.gate_proj.weight"
    seen: list[tuple[int, int, str]] = []
    walk(
        model,
        [tiny.sample("llava")],
        visit,
        schemes=schemes_of(model),
        visual_weights={name: 0.25},
        on_progress=lambda *step: seen.append(step),
    )
    assert {n: s.visual_weight for n, s in visit.sites.items() if s.visual_weight != 1} == {name: 0.25}
    assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen})
    assert seen[-1][0] == seen[-1][1] == sum(p.numel() for n, p in model.named_parameters() if n in schemes_of(model))


def test_modes_and_hooks_are_as_before(tiny: Any) -> None:
    model = tiny.build("llava").train()
    model.model.vision_tower.eval()
    modes = [module.training for module in model.modules()]
    walk(model, [tiny.sample("llava")], Nearest(), schemes=schemes_of(model))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks or "forward" in module.__dict__ for module in model.modules())


class Block(nn.Module):
    """A residual MLP that answers as told."""

    def __init__(self, answers: str) -> None:
        super().__init__()
        self.norm2, self.mlp, self.answers = nn.LayerNorm(8), nn.Module(), answers
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, tokens: Tensor, *, scale: float) -> Any:
        out = tokens + scale * self.mlp.fc2(torch.relu(self.mlp.fc1(self.norm2(tokens))))
        return {"tensor": out, "tuple": (out, None), "list": [out, 3]}[self.answers]


class Own(nn.Module):
    """A stack that may be run several times, have something between its layers, or be read halfway."""

    def __init__(self, *, answers: str = "tensor", passes: int = 1, glue: bool = False, halfway: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.out = nn.Linear(4, 8), nn.Linear(8, 3)
        self.things = nn.ModuleList(Block(answers) for _ in range(3))
        self.passes, self.glue, self.halfway = passes, glue, halfway

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for part in x.chunk(self.passes):
            tokens, early = self.stem(part), None
            for index, layer in enumerate(self.things):
                tokens = layer(tokens, scale=1.0 + index)
                tokens = tokens if isinstance(tokens, Tensor) else tokens[0]
                tokens = tokens + 1 if self.glue and index == 1 else tokens
                early = tokens if index == 0 else early
            results.append(early if self.halfway else tokens)
        return self.out(torch.cat(results))


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"answers": "tuple"},
        {"answers": "list"},
        {"passes": 2},
        {"glue": True},
        {"halfway": True},
        {"answers": "tuple", "passes": 3, "halfway": True},
    ],
)
def test_stacks_of_all_kinds(kind: dict[str, Any]) -> None:
    model = Own(**kind)
    original = copy.deepcopy(model)
    visit = Nearest()
    samples = [{"x": torch.randn(6, 4, generator=torch.Generator().manual_seed(s))} for s in range(3)]
    report = walk(model, samples, visit, schemes=schemes_of(model))
    assert report.unreached == ()
    order = list(visit.sites)
    assert order[0] == "stem.weight"
    assert order[-1] == "out.weight"
    # What "out" read is what the quantized layers before it give.
    seen: list[Tensor] = []
    model.out.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        for given in samples:
            model(**given)
    found = visit.sites["out.weight"].activations.samples
    torch.testing.assert_close(found, torch.cat(seen))
    with torch.no_grad():
        seen_before = original.stem(samples[0]["x"])
    assert not torch.allclose(seen_before, model.stem(samples[0]["x"]))
    assert visit.sites["things.1.mlp.fc1.weight"].scalable


def test_a_norm_that_something_else_reads_too_takes_no_factor() -> None:
    class Parallel(Block):
        def forward(self, tokens: Tensor, *, scale: float) -> Tensor:
            return super().forward(tokens, scale=scale) + self.norm2(tokens)

    model, visit = Own(), Nearest()
    model.things = nn.ModuleList(Parallel("tensor") for _ in range(2))
    walk(model, [{"x": torch.randn(5, 4)}], visit, schemes=schemes_of(model))
    assert not any(site.scalable for site in visit.sites.values())


def test_a_site_whose_layers_read_several_tensors_counts_each() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_layernorm, self.self_attn = nn.RMSNorm(4), nn.Module()
            for name in ("q_proj", "k_proj", "v_proj"):
                self.self_attn.add_module(name, nn.Linear(4, 4))

        def forward(self, text: Tensor, image: Tensor) -> Tensor:
            attention, text, image = self.self_attn, self.input_layernorm(text), self.input_layernorm(image)
            keys = torch.cat([attention.k_proj(tokens) for tokens in (image, text)])
            values = torch.cat([attention.v_proj(tokens) for tokens in (image, text)])
            return (attention.q_proj(text) @ keys.T).softmax(-1) @ values

    model, visit = Attention(), Nearest()
    walk(model, [{"text": torch.randn(3, 4), "image": torch.randn(5, 4)}], visit, schemes=schemes_of(model))
    (site,) = visit.sites.values()
    assert site.activations.num_tokens == 8
    assert site.scalable


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "calibration: expected at least one sample, got an empty iterable"),
        ({"input_ids": torch.zeros(1, 2)}, "calibration: expected an iterable of forward keyword arguments, got dict"),
        (torch.zeros(2, 2), "calibration: expected an iterable of forward keyword arguments, got Tensor"),
        (3, "calibration: expected an iterable of forward keyword arguments, got int"),
        ([{"input_ids": torch.full((1, 4), 7)}, torch.zeros(2)], "calibration sample 1: expected a dict .* got Tensor"),
        ([{}], "calibration sample 0: expected at least one tensor that is not empty, got"),
        ([{"input_ids": torch.full((1, 4), 7)}, {"words": torch.ones(1)}], "sample 1: expected what the model"),
        ([{"input_ids": torch.full((1, 4), 999)}], "sample 0: expected what the model's forward takes, got"),
        ([{"input_ids": torch.full((1, 4), 7), "pixel_values": torch.zeros(1, 3, 8, 8)}], r"got .*\[1, 3, 8, 8\]"),
        (
            [
                {"input_ids": torch.full((1, 4), 7)},
                {"input_ids": torch.full((1, 4), 3), "pixel_values": torch.ones(1, 3, 16, 16)},
            ],
            "calibration sample 1: .*Image features and image tokens do not match",
        ),
        (
            [{"input_ids": torch.full((1, 16), 3), "pixel_values": torch.full((1, 3, 16, 16), math.nan)}],
            "calibration sample 0: model.vision_tower.encoder.layers.0.self_attn.q_proj: expected finite",
        ),
    ],
)  # fmt: skip
def test_wrong_calibration_changes_nothing(tiny: Any, calibration: Any, message: str) -> None:
    model = tiny.build("llava").train()
    before = state_of(model)
    with pytest.raises(CalibrationError, match=message) as caught:
        walk(model, calibration, Nearest(), schemes=schemes_of(model))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], param) for name, param in model.named_parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks or "forward" in module.__dict__ for module in model.modules())


def test_answers_that_do_not_fit_are_refused(tiny: Any) -> None:
    model = tiny.build("llava")
    first = "model.vision_tower.encoder.layers.0.mlp.fc2.weight"

    def attempt(answer: Any) -> None:
        walk(model, [tiny.sample("llava")], answer, schemes=schemes_of(model))

    nearest = Nearest()
    before = state_of(model)
    with pytest.raises(CalibrationError, match=rf"{first}: expected codes of \['{first}'\], got \[\]"):
        attempt(lambda site: SiteResult(quantized={}))
    with pytest.raises(CalibrationError, match=rf"{first}: expected no factor"):
        attempt(lambda site: SiteResult(quantized=nearest(site).quantized, factor=torch.ones(24)))
    with pytest.raises(CalibrationError, match=rf"{first}: expected codes of \[16, 24\], got \[2, 2\]"):
        wrong = quantize_tensor(torch.ones(2, 2), Scheme(granularity="channel"))
        attempt(lambda site: SiteResult(quantized=dict.fromkeys(site.weights, wrong)))
    assert all(torch.equal(before[name], param) for name, param in model.named_parameters())
