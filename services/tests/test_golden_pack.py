"""Packs of earlier versions unpack to the same weights and answer alike."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"
PACKS = sorted(GOLDEN.glob("*/edge_packed"))


@pytest.fixture
def read_pack() -> Any:
    specification = importlib.util.spec_from_file_location("reading", GOLDEN / "reading.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.read_pack


def test_there_is_one() -> None:
    assert [path.parent.name for path in PACKS][:1] == ["0.1.0"]


@pytest.mark.parametrize("path", PACKS, ids=lambda path: path.parent.name)
def test_a_pack_reads_as_it_was_written(path: Path, read_pack: Any) -> None:
    torch.set_num_threads(1)
    expected = json.loads(path.with_suffix(".json").read_text())
    found = read_pack(path)
    assert torch.allclose(torch.tensor(found.pop("logits")), torch.tensor(expected.pop("logits")), atol=1e-3)
    assert found == expected
