"""Packs made on calibration data: from files layer by layer, and from a model in memory."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from quantpack import (
    CalibrationError,
    OutputExistsError,
    PartRecipe,
    Recipe,
    Scheme,
    SourceError,
    dequantize,
    inspect,
    load,
    pack,
    pack_model,
    quantize,
    read_tensors,
    verify,
)
from quantpack.calibration.names import parameter_names
from quantpack.container.reading import PackReader
from quantpack.methods.awq import Awq
from quantpack.methods.ecm import Ecm
from quantpack.methods.gptq import Gptq
from quantpack.methods.mbq import Mbq
from quantpack.wire import quantized_model_from_proto
from vlmpress import artifact
from vlmpress.artifact.v1 import artifact_pb2

RECIPES = {
    "nearest": Recipe(default=PartRecipe(scheme=Scheme(granularity="agq", axis="in"))),
    "gptq": Recipe(default=PartRecipe(method=Gptq())),
    "awq": Recipe(default=PartRecipe(scheme=Scheme(granularity="channel"), method=Awq())),
    "ecm": Recipe(
        default=PartRecipe(scheme=Scheme(granularity="rows", num_rows=2)),
        parts={
            "vision": PartRecipe(scheme=Scheme(granularity="agq", symmetric=True), method=Ecm(alpha=0.5)),
            "other": None,
        },
        embeddings="int4",
    ),
}


@pytest.fixture(scope="module")
def samples() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.cat((torch.full((2, 64), 3), torch.randint(4, 60, (2, 9), generator=generator)), 1)
    pixels = torch.randn(2, 3, 64, 64, generator=generator).to(torch.bfloat16)
    text = torch.randint(4, 60, (1, 12), generator=generator)
    return [{"input_ids": ids, "pixel_values": pixels}, {"input_ids": text}]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_files_and_memory_give_the_same(
    llava_dir: Path, samples: list[dict[str, Any]], tmp_path: Path, recipe: Recipe
) -> None:
    # Read back, for casting the model has rounded its rotary frequencies too.
    model = AutoModelForImageTextToText.from_pretrained(llava_dir, dtype=torch.bfloat16)
    quantization = quantize(model, recipe, samples)
    from_memory = pack_model(model, quantization, tmp_path / "memory", like=llava_dir)
    from_files = pack(llava_dir, tmp_path / "files", recipe, samples)
    names = parameter_names(model, PackReader(tmp_path / "files" / "model.safetensors").names)
    stored = read_tensors(from_memory.path)
    expected = model.state_dict()
    for name, tensor in read_tensors(from_files.path).items():
        assert torch.equal(tensor, expected[names[name]]), name
        assert torch.equal(tensor, stored[names[name]]), name
    for directory in (from_memory.path, from_files.path):
        verify(directory)
        loaded = load(directory, torch.bfloat16)
        with torch.no_grad():
            assert torch.equal(loaded(**samples[0]).logits, model(**samples[0]).logits)
        packed = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.bfloat16)
        assert torch.equal(
            packed.model.language_model.layers[0].input_layernorm.weight,
            model.model.language_model.layers[0].input_layernorm.weight,
        )
        assert (directory / "tokenizer.json").exists()
        if recipe is not RECIPES["nearest"]:
            record = json.loads((directory / "quantization.json").read_text(encoding="utf-8"))
            assert record["recipe"] == recipe.as_fields()
        stated = quantized_model_from_proto(artifact.read(directory).manifest.quantized_model)
        assert stated.recipe == (None if recipe is RECIPES["nearest"] else recipe)
    totals = [
        next(each for each in inspect(path) if each.part == "total") for path in (from_memory.path, from_files.path)
    ]
    assert totals[0].code_bytes_compressed == totals[1].code_bytes_compressed
    assert from_memory.manifest.quantized_model == from_files.manifest.quantized_model


def test_a_record_and_a_picture_become_part_of_the_pack(llava: LlavaForConditionalGeneration, tmp_path: Path) -> None:
    model = copy.deepcopy(llava)
    quantization = quantize(model, Scheme())
    made = pack_model(
        model, quantization, tmp_path / "pack", record={"search": {"floor": 0.9}}, pictures={"search.svg": "<svg/>"}
    )
    verify(made.path)
    assert json.loads((made.path / "quantization.json").read_text(encoding="utf-8"))["search"] == {"floor": 0.9}
    assert (made.path / "search.svg").read_text(encoding="utf-8") == "<svg/>"
    with pytest.raises(OutputExistsError):
        pack_model(model, quantization, tmp_path / "pack")
    with pytest.raises(SourceError, match="with a config"):
        pack_model(torch.nn.Linear(2, 2), quantization, tmp_path / "other")


def test_what_a_pack_is_made_of_is_in_its_manifest(llava_dir: Path, tmp_path: Path) -> None:
    with artifact.create(tmp_path / "source") as draft:
        shutil.copytree(llava_dir, draft.path, dirs_exist_ok=True)
        source = draft.commit(artifact_pb2.Model(model_type="llava"), producer=("test", "1"))
    data = ("calibration", "0" * 64)
    model = AutoModelForImageTextToText.from_pretrained(source.path, dtype=torch.bfloat16)
    made = (
        pack(source.path, tmp_path / "files", Scheme(), parents=[data]),
        pack_model(model, quantize(model, Scheme()), tmp_path / "memory", like=source.path, parents=[data]),
        pack(llava_dir, tmp_path / "plain", Scheme(), parents=[data]),
    )
    parents = [[(parent.role, parent.digest) for parent in each.manifest.parents] for each in made]
    assert parents == [[("model", source.digest), data], [("model", source.digest), data], [data]]


def test_progress_counts_every_tensor(llava_dir: Path, samples: list[dict[str, Any]], tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    pack(llava_dir, tmp_path / "pack", RECIPES["gptq"], samples, lambda *call: calls.append(call))
    shapes = {name: tensor.numel() for name, tensor in load_file(llava_dir / "model.safetensors").items()}
    assert sorted(name for *_, name in calls) == sorted(shapes)
    assert [done for done, *_ in calls] == sorted(done for done, *_ in calls)
    assert calls[-1][:2] == (sum(shapes.values()), sum(shapes.values()))


def test_bad_calibration_leaves_nothing(
    llava_dir: Path, plain_file: Path, samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "pack"
    awq = Recipe(default=PartRecipe(method=Awq()))
    with pytest.raises(CalibrationError, match="method awq: expected calibration data"):
        pack(llava_dir, out, awq)
    with pytest.raises(CalibrationError, match="method mbq: expected a model in memory"):
        pack(llava_dir, out, Recipe(default=PartRecipe(method=Mbq())), samples)
    with pytest.raises(CalibrationError, match="plain safetensors file"):
        pack(plain_file, out, awq, samples)
    with pytest.raises(CalibrationError, match="calibration sample 1"):
        pack(llava_dir, out, awq, [samples[0], {"input_ids": torch.ones(1, 3, 4)}])
    bad = [{**samples[0], "pixel_values": torch.full((2, 3, 64, 64), torch.nan, dtype=torch.bfloat16)}]
    with pytest.raises(CalibrationError, match=r"calibration sample 0: .*expected finite activations"):
        pack(llava_dir, out, awq, bad)
    assert not out.exists()
    assert not list(out.parent.glob("*")) if out.parent.exists() else True


def test_weights_no_token_reaches_are_rounded_to_nearest(
    llava_dir: Path, samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Text alone never runs the vision tower."""
    recipe = Recipe(default=PartRecipe(scheme=Scheme(granularity="channel"), method=Gptq()))
    pack(llava_dir, tmp_path / "text", recipe, samples[1:])
    pack(llava_dir, tmp_path / "nearest", Scheme(granularity="channel"))
    text, nearest = (PackReader(tmp_path / name / "model.safetensors") for name in ("text", "nearest"))
    same = {name for name in nearest.names if torch.equal(text.tensor(name), nearest.tensor(name))}
    changed = set(nearest.names) - same
    assert changed
    assert all("language_model" in name for name in changed)


def test_sharded_sources_are_calibrated_too(
    llava: LlavaForConditionalGeneration, llava_dir: Path, samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    llava.save_pretrained(tmp_path / "shards", max_shard_size="100kB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    one = pack(llava_dir, tmp_path / "one", RECIPES["ecm"], samples)
    many = pack(tmp_path / "shards", tmp_path / "many", RECIPES["ecm"], samples)
    assert (one.path / "model.safetensors").read_bytes() == (many.path / "model.safetensors").read_bytes()


def test_a_model_of_float16_keeps_its_scales(llava: LlavaForConditionalGeneration) -> None:
    model = copy.deepcopy(llava).to(torch.float16)
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    quantization = quantize(model, Scheme())
    assert quantization.tensors[name].scales.dtype == torch.float16
    assert torch.equal(dict(model.named_parameters())[name], dequantize(quantization.tensors[name]))
