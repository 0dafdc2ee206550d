import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact, create
from vlmpress.artifact.v1 import artifact_pb2 as pb

# The smallest PNG: one white pixel. The readers only ask whether the file is there.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with the images a.png to e.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abcde":
        (folder / f"{name}.png").write_bytes(PIXEL)
    return folder


@pytest.fixture
def dataset(images: Path) -> Callable[[Any], Path]:
    """Writes a dataset file beside the images: text as it is, a list as JSON, a tuple as JSONL."""

    def write(content: Any) -> Path:
        path = images / "data.json"
        if isinstance(content, tuple):
            content = "".join(json.dumps(entry) + "\n" for entry in content)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A committed artifact of three small files, one of them empty."""
    with create(tmp_path / "artifact") as draft:
        (draft.path / "weights.bin").write_bytes(bytes(range(40)))
        (draft.path / "empty.txt").touch()
        (draft.path / "sub" / "deep").mkdir(parents=True)
        (draft.path / "sub" / "deep" / "note.txt").write_text("kept")
        return draft.commit(pb.Model(model_type="llava", num_params=40), producer=("vlmpress-contracts", "0.1.0"))
