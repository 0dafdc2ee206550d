from collections.abc import Callable
from pathlib import Path

import pytest

from vlmpress.artifact import Artifact
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.store import LocalStore

PRODUCER = ("vlmpress-services", "0.1.0")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def add_log(store: LocalStore) -> Callable[..., Artifact]:
    """Commits a log artifact with one file of the given text."""

    def add(text: str = "hello", name: str = "log.txt") -> Artifact:
        with store.draft() as draft:
            (draft.path / name).write_text(text)
            return draft.commit(artifact_pb2.Log(source="test"), producer=PRODUCER)

    return add
