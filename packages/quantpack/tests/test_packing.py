"""Packs, and what comes out of them again."""

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from quantpack import (
    OutputExistsError,
    Scheme,
    SourceError,
    WeightError,
    dequantize,
    inspect,
    pack,
    quantize_tensor,
    read_tensors,
    unpack,
    verify,
)
from quantpack.container.reading import PackReader
from quantpack.selection import is_linear_weight
from vlmpress import artifact
from vlmpress.artifact.v1 import artifact_pb2

SCHEMES = [
    Scheme(granularity=granularity, group_size=5, symmetric=symmetric, axis=axis, bits=bits)
    for granularity in ("tensor", "channel", "group", "rows", "agq")
    for symmetric in (False, True)
    for axis, bits in (("out", 4), ("in", 3))
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_scales_and_zeros_come_back_bit_for_bit(tmp_path: Path, scheme: Scheme) -> None:
    torch.manual_seed(0)
    shapes = [(1, 1), (1, 7), (830, 545), (3, 64), (1500, 1401)]
    tensors = {f"w{number}": torch.randn(shape) for number, shape in enumerate(shapes)}
    tensors["w1"] = tensors["w1"].to(torch.bfloat16)
    save_file(tensors, tmp_path / "w.safetensors")
    pack(tmp_path / "w.safetensors", tmp_path / "pack", scheme)
    reader = PackReader(tmp_path / "pack" / "model.safetensors")
    for name, tensor in tensors.items():
        expected, found = quantize_tensor(tensor, scheme), reader.quantized(name)
        assert torch.equal(found.codes, expected.codes)
        assert found.scales.dtype == tensor.dtype
        assert torch.equal(found.scales, expected.scales)
        assert (found.zeros is None) == (expected.zeros is None)
        if found.zeros is not None and expected.zeros is not None:
            assert torch.equal(found.zeros, expected.zeros)
        if expected.channel_blocks is not None:
            assert torch.equal(found.channel_blocks, expected.channel_blocks)
        assert found.scheme == scheme
        assert torch.equal(reader.tensor(name), dequantize(expected))
    sizes = {entry.name: len(entry.frame_bytes) for entry in reader.index.quantized}
    assert sizes == {"w0": 1, "w1": 1, "w2": 1, "w3": 1, "w4": 2}


def test_plain_file_quantizes_every_float_matrix_and_keeps_the_rest(plain_file: Path, plain_pack: Path) -> None:
    source = load_file(plain_file)
    scheme = Scheme(granularity="group", group_size=3)
    restored = read_tensors(plain_pack)
    assert restored.keys() == source.keys()
    for name, tensor in source.items():
        expected = dequantize(quantize_tensor(tensor, scheme)) if name in ("proj", "half") else tensor
        assert restored[name].dtype == tensor.dtype
        assert torch.equal(restored[name], expected)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_unpack_writes_what_read_tensors_gives(plain_pack: Path, tmp_path: Path, dtype: torch.dtype | None) -> None:
    out = unpack(plain_pack, tmp_path / "deep" / "restored.safetensors", dtype)
    restored, expected = load_file(out), read_tensors(plain_pack, dtype)
    assert restored.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(restored[name], tensor)
        assert tensor.dtype == (dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype)
    assert restored["steps"].dtype == torch.int64
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_model_pack_is_an_artifact_and_a_model_directory(llava_dir: Path, llava_pack: Path) -> None:
    found = artifact.verify(llava_pack)
    assert found.manifest.kind == "quantized_model"
    assert not found.manifest.parents
    config = json.loads((llava_pack / "config.json").read_text(encoding="utf-8"))
    assert config.pop("quantization_config") == {
        "quant_method": "quantpack",
        "bits": 4,
        "granularity": "group",
        "group_size": 128,
        "num_rows": 0,
        "blocks": [],
        "axis": "out",
        "symmetric": False,
    }
    assert config == json.loads((llava_dir / "config.json").read_text(encoding="utf-8"))
    for name in ("tokenizer.json", "reduction_policy.json", "generation_config.json", "templates/chat.jinja"):
        assert (llava_pack / name).read_bytes() == (llava_dir / name).read_bytes()


def test_model_pack_quantizes_linear_layers_only(llava: LlavaForConditionalGeneration, llava_pack: Path) -> None:
    reader = PackReader(llava_pack / "model.safetensors")
    linear = [module for module in llava.modules() if isinstance(module, torch.nn.Linear)]
    codes = sum(entry.num_weights for entry in reader.index.quantized)
    assert codes == sum(module.weight.numel() for module in linear) - llava.lm_head.weight.numel()
    with safe_open(llava_pack.parent / "model" / "model.safetensors", framework="pt") as source:
        assert reader.names == sorted(source.keys())
        for name in reader.names:
            tensor = source.get_tensor(name)
            if is_linear_weight(name, tuple(tensor.shape)):
                assert torch.equal(reader.tensor(name), dequantize(quantize_tensor(tensor, Scheme())))
            else:
                assert reader.tensor(name).dtype == tensor.dtype
                assert torch.equal(reader.tensor(name), tensor)


def test_the_tiny_model_shrinks_to_less_than_a_third(llava: LlavaForConditionalGeneration, llava_pack: Path) -> None:
    total = inspect(llava_pack)[-1]
    assert total.bytes_on_disk / (2 * llava.num_parameters()) < 0.33


def test_sharded_directories_pack_to_the_same_bytes(
    llava: LlavaForConditionalGeneration, llava_pack: Path, tmp_path: Path
) -> None:
    llava.save_pretrained(tmp_path / "model", max_shard_size="200KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    pack(tmp_path / "model", tmp_path / "pack", Scheme())
    name = "model.safetensors"
    assert (tmp_path / "pack" / name).read_bytes() == (llava_pack / name).read_bytes()
    assert not list((tmp_path / "pack").glob("*.index.json"))


def test_packing_is_deterministic(llava_dir: Path, llava_pack: Path, tmp_path: Path) -> None:
    assert pack(llava_dir, tmp_path / "again", Scheme()).digest == artifact.read(llava_pack).digest


def test_tied_weights_are_stored_once(llava_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_bytes((llava_dir / "config.json").read_bytes())
    tensors = load_file(llava_dir / "model.safetensors")
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    pack(source, tmp_path / "pack", Scheme())
    verify(tmp_path / "pack")
    index = PackReader(tmp_path / "pack" / "model.safetensors").index
    assert index.aliases == {"language_model.model.embed_tokens.weight": "language_model.lm_head.weight"}
    restored = read_tensors(tmp_path / "pack")
    assert restored.keys() == tensors.keys()
    for alias, target in index.aliases.items():
        assert torch.equal(restored[alias], tensors[target])
        assert restored[alias].data_ptr() != restored[target].data_ptr()


def test_an_artifact_becomes_the_parent(llava_dir: Path, tmp_path: Path) -> None:
    with artifact.create(tmp_path / "model") as draft:
        for name in ("config.json", "model.safetensors"):
            (draft.path / name).write_bytes((llava_dir / name).read_bytes())
        model = draft.commit(artifact_pb2.Model(model_type="llava", num_params=1), producer=("test", "1"))
    made = pack(tmp_path / "model", tmp_path / "pack", Scheme())
    assert [(parent.role, parent.digest) for parent in made.manifest.parents] == [("model", model.digest)]
    verify(tmp_path / "pack")


def test_a_damaged_artifact_is_not_packed(llava_dir: Path, tmp_path: Path) -> None:
    with artifact.create(tmp_path / "model") as draft:
        for name in ("config.json", "model.safetensors"):
            (draft.path / name).write_bytes((llava_dir / name).read_bytes())
        draft.commit(artifact_pb2.Model(model_type="llava", num_params=1), producer=("test", "1"))
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xa5")
    with pytest.raises(artifact.ArtifactFaultError, match="expected SHA-256"):
        pack(tmp_path / "model", tmp_path / "pack", Scheme())


def test_other_formats_weights_and_hidden_files_stay_behind(llava_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / ".cache").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (source / name).write_bytes((llava_dir / name).read_bytes())
    for name in ("pytorch_model.bin", ".cache/lock", "notes.txt"):
        (source / name).write_bytes(b"x")
    pack(source, tmp_path / "pack", Scheme())
    names = {path.name for path in (tmp_path / "pack").iterdir()}
    assert names == {"config.json", "model.safetensors", "notes.txt", "manifest.json", "manifest.sha256"}


@pytest.mark.parametrize("is_empty_folder", [False, True])
def test_an_existing_output_is_left_alone(plain_file: Path, tmp_path: Path, is_empty_folder: bool) -> None:
    out = tmp_path / "taken"
    if is_empty_folder:
        out.mkdir()
    else:
        out.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="does not exist yet"):
        pack(plain_file, out, Scheme())
    with pytest.raises(OutputExistsError, match="does not exist yet"):
        unpack(tmp_path / "pack", out)
    assert out.is_dir() if is_empty_folder else out.read_bytes() == b"mine"


def test_nan_is_refused_by_name_and_leaves_nothing(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 2), "b": torch.full((2, 2), float("nan"))}, tmp_path / "w.safetensors")
    with pytest.raises(WeightError, match=r"^b: expected finite"):
        pack(tmp_path / "w.safetensors", tmp_path / "pack", Scheme())
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def write_source(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"config\.json: expected a JSON object"),
        ({"config.json": "{"}, r"config\.json: expected a JSON object"),
        ({"config.json": "[]"}, r"config\.json: expected a JSON object, got list"),
        ({"config.json": '{"quantization_config": {"bits": 4}}'}, "expected unquantized weights"),
        ({"config.json": "{}"}, "found neither"),
        ({"config.json": "{}", "model.safetensors": "no"}, "expected a safetensors file"),
        ({"config.json": "{}", "model.safetensors.index.json": "{}"}, "expected weight_map"),
        (
            {"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"w": "../w.safetensors"}}'},
            "expected weight_map",
        ),
        (
            {"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"w": "w.safetensors"}}'},
            "expected a safetensors file",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_packed_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    source = write_source(tmp_path / "model", files)
    with pytest.raises(SourceError, match=message):
        pack(source, tmp_path / "pack", Scheme())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_shards_must_hold_what_the_index_says_once(tmp_path: Path) -> None:
    source = write_source(tmp_path / "model", {"config.json": "{}"})
    for shard in ("a", "b"):
        save_file({"w": torch.ones(2, 2)}, source / f"{shard}.safetensors")
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "a.safetensors", "x": "b.safetensors"}}), encoding="utf-8")
    with pytest.raises(SourceError, match="tensor x is in none"):
        pack(source, tmp_path / "pack", Scheme())
    index.write_text(json.dumps({"weight_map": {"w": "a.safetensors", "w2": "b.safetensors"}}), encoding="utf-8")
    save_file({"w": torch.ones(2, 2), "w2": torch.ones(2, 2)}, source / "b.safetensors")
    with pytest.raises(SourceError, match=r"tensor w is in a\.safetensors as well"):
        pack(source, tmp_path / "pack", Scheme())


def test_progress_ends_at_the_total(plain_file: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    pack(plain_file, tmp_path / "pack", Scheme(), on_progress=lambda *call: calls.append(call))
    assert [name for *_, name in calls] == sorted(load_file(plain_file))
    assert calls[-1][0] == calls[-1][1] == 71


@pytest.fixture
def short_files() -> Iterator[None]:
    """No file grows beyond 300 bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_os_error_and_leaves_nothing(
    plain_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("short_files")
    with pytest.raises(OSError, match="File too large"):
        pack(plain_file, tmp_path / "full", Scheme())
    assert list(tmp_path.iterdir()) == [plain_file]


def test_unpack_on_a_full_disk_leaves_nothing(plain_pack: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    before = sorted(tmp_path.iterdir())
    request.getfixturevalue("short_files")
    with pytest.raises(OSError, match="File too large"):
        unpack(plain_pack, tmp_path / "full.safetensors")
    assert sorted(tmp_path.iterdir()) == before
