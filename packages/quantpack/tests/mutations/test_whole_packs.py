"""Changed packs with manifests and digests made to fit: each is read or refused by a QuantpackError."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from google.protobuf import json_format
from safetensors.torch import save_file

from quantpack import QuantpackError, Scheme, inspect, pack, read_tensors, verify
from quantpack.container.reading import PackReader
from quantpack.totals import totals
from quantpack.wire import quantized_model_to_proto
from vlmpress import artifact

# One in so many more goes through files, manifests and digests: that takes ten times as long.
SHARE = 100


def small_model(folder: Path) -> dict[str, bytes]:
    """The files of a small pack of a model."""
    source = folder / "model"
    source.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {"layers.0.weight": torch.randn(3, 5, generator=generator), "norm.weight": torch.ones(3)}
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text('{"model_type": "small"}', encoding="utf-8")
    pack(source, folder / "pack", Scheme(group_size=4))
    return {path.name: path.read_bytes() for path in (folder / "pack").iterdir()}


@pytest.fixture
def change_files(
    mutate: Callable[[int, list[bytes]], bytes],
    change_tree: Callable[[Random, Any], None],
    change_bytes: Callable[[Random, bytes], bytes],
) -> Callable[[Random, dict[str, bytes]], dict[str, bytes]]:
    """Weights, config and manifest changed; digests, sizes and totals made to fit."""

    def change(random: Random, files: dict[str, bytes]) -> dict[str, bytes]:
        files = dict(files)
        manifest, config = json.loads(files["manifest.json"]), json.loads(files["config.json"])
        chosen = random.sample(("weights", "config", "manifest"), random.choice((1, 1, 2)))
        if "weights" in chosen:
            files["model.safetensors"] = mutate(random.randrange(1 << 30), [files["model.safetensors"]])
            set_totals(manifest, files["model.safetensors"])
        if "config" in chosen:
            change_tree(random, config)
            files["config.json"] = json.dumps(config).encode()
            if random.random() < 0.2:
                files["config.json"] = change_bytes(random, files["config.json"])
        for row in manifest["files"]:
            data = files[row["path"]]
            row.update(sha256=artifact.digest_bytes(data), size_bytes=str(len(data)))
        if "manifest" in chosen:
            change_tree(random, manifest)
        text = json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        files["manifest.json"] = text.encode(errors="replace")
        if random.random() < 0.05:
            files["manifest.json"] = change_bytes(random, files["manifest.json"])
        files["manifest.sha256"] = f"{artifact.digest_bytes(files['manifest.json'])}\n".encode()
        return files

    return change


def set_totals(manifest: Any, weights: bytes) -> None:
    try:
        model = quantized_model_to_proto(totals(PackReader.over(memoryview(weights), "").index))
    except QuantpackError:
        return
    manifest["quantized_model"] = json_format.MessageToDict(model, preserving_proto_field_name=True)


@pytest.mark.usefixtures("little_memory")
def test_changed_packs_are_read_or_refused(
    tmp_path: Path, change_files: Callable[[Random, dict[str, bytes]], dict[str, bytes]], num_mutations: int
) -> None:
    files = small_model(tmp_path)
    directory = tmp_path / "changed"
    directory.mkdir()
    num_accepted = 0
    for number in range(num_mutations // SHARE):
        for name, data in change_files(Random(number), files).items():
            (directory / name).write_bytes(data)
        try:
            num_accepted += sum(accepts(work, directory) for work in (inspect, read_tensors, verify)) == 3
        except Exception as error:
            raise AssertionError(f"pack {number}: {error!r}") from error
    assert 0 < num_accepted < 0.6 * num_mutations // SHARE


def accepts(work: Callable[[Path], object], directory: Path) -> bool:
    try:
        work(directory)
    except QuantpackError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise AssertionError(f"expected one short line, got {error}") from error
        return False
    return True
