"""Code that a directory's config names is found through entry points, by name."""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlmpress.artifact import (
    COMPRESSION_FILE,
    POLICY_FILE,
    ArtifactError,
    ExtensionMissingError,
    compression_attachment,
    extensions,
    import_model_code,
    quantized_loader,
    reducer_attachment,
    write_policy,
)
from vlmpress.tokenreduce.v1 import tokenreduce_pb2

POLICY = tokenreduce_pb2.ReductionPolicy(
    method="fake",
    mode=tokenreduce_pb2.MODE_RESIDUAL,
    tau=0.1,
    factors=[1, 2, 3],
    calibration=tokenreduce_pb2.CalibrationDistribution(num_images=4, mean_tokens=288.5),
)


@pytest.fixture(autouse=True)
def fake_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module that offers one extension of each group, as an installed distribution would."""
    module = ModuleType("fake_extension")
    module.load = lambda directory: ("model", directory)
    module.compress = lambda model, directory: (model, directory)
    module.attach = lambda model, policy: (model, policy)
    monkeypatch.setitem(sys.modules, "fake_extension", module)
    offered = EntryPoints(
        [
            EntryPoint("fake", "fake_extension", "vlmpress.models"),
            EntryPoint("fake", "fake_extension:load", "vlmpress.quantizers"),
            EntryPoint("fake", "fake_extension:attach", "vlmpress.token_reducers"),
            EntryPoint("stagetrain", "fake_extension:compress", "vlmpress.visual_compressions"),
            EntryPoint("broken", "no_such_module_anywhere:load", "vlmpress.quantizers"),
        ]
    )
    monkeypatch.setattr(extensions, "entry_points", lambda **filters: offered.select(**filters))
    return module


def directory(folder: Path, config: Any) -> Path:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def test_model_code_is_imported_where_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(EntryPoint, "load", lambda self: asked.append(self.value))
    import_model_code(directory(tmp_path, {"model_type": "llava"}))
    assert asked == []
    import_model_code(directory(tmp_path, {"model_type": "fake"}))
    assert asked == ["fake_extension"]
    import_model_code(directory(tmp_path, {}))
    assert asked == ["fake_extension"]


def test_quantized_loader(tmp_path: Path) -> None:
    assert quantized_loader(directory(tmp_path, {})) is None
    load = quantized_loader(directory(tmp_path, {"quantization_config": {"quant_method": "fake"}}))
    assert load is not None
    assert load() == ("model", tmp_path)


@pytest.mark.parametrize("quantization", [{"quant_method": "other"}, {}])
def test_a_quantizer_that_is_not_installed_is_named(tmp_path: Path, quantization: dict[str, str]) -> None:
    with pytest.raises(ExtensionMissingError, match=r"expected an installed quantizer named '(other)?', found none"):
        quantized_loader(directory(tmp_path, {"quantization_config": quantization}))


def test_a_quantizer_that_does_not_import_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExtensionMissingError, match=r"vlmpress\.quantizers 'broken'.*no_such_module_anywhere"):
        quantized_loader(directory(tmp_path, {"quantization_config": {"quant_method": "broken"}}))


def test_reducer_attachment(tmp_path: Path) -> None:
    assert reducer_attachment(tmp_path) is None
    write_policy(tmp_path, POLICY)
    attach = reducer_attachment(tmp_path)
    assert attach is not None
    assert attach("model") == ("model", POLICY)


def test_compression_attachment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compression_attachment(tmp_path) is None
    (tmp_path / COMPRESSION_FILE).write_text("{}")
    load = compression_attachment(tmp_path)
    assert load is not None
    assert load("model") == ("model", tmp_path)
    monkeypatch.setattr(extensions, "entry_points", lambda **_: ())
    with pytest.raises(ExtensionMissingError, match="expected vlmpress-stagetrain installed"):
        compression_attachment(tmp_path)


def test_policy_file_is_sorted_json(tmp_path: Path) -> None:
    write_policy(tmp_path, POLICY)
    text = (tmp_path / POLICY_FILE).read_text()
    assert list(json.loads(text)) == ["calibration", "factors", "method", "mode", "tau"]
    assert text.endswith("}\n")


def test_a_reducer_that_is_not_installed_is_named(tmp_path: Path) -> None:
    write_policy(tmp_path, tokenreduce_pb2.ReductionPolicy(method="other"))
    with pytest.raises(ExtensionMissingError, match="expected an installed token reducer named 'other', found none"):
        reducer_attachment(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tau": "x"}', '{"unknown": 1}', "[" * 100_000, "\ud800"])
def test_an_odd_policy_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / POLICY_FILE).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ArtifactError, match="expected a reduction policy as JSON") as caught:
        reducer_attachment(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, "\ud800"])
@pytest.mark.parametrize("find", [import_model_code, quantized_loader])
def test_an_odd_config_is_an_error(tmp_path: Path, find: Any, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ArtifactError, match="expected a model's config"):
        find(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ArtifactError, match="expected a model's config"):
        find(tmp_path)
