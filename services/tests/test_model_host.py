import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact, ArtifactFaultError
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import InvalidRequestError, NotFoundError, OverloadedError
from vlmpress_services.serving.model_host import ModelHost
from vlmpress_services.store.local import LocalStore


def add(store: LocalStore, text: str) -> Artifact:
    with store.draft() as draft:
        (draft.path / "config.json").write_text(text)
        return draft.commit(artifact_pb2.Model(model_type="t"), producer=("test", "0"))


class Loads:
    """Counts loads; a model is its file's text."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.release = threading.Event()
        self.release.set()

    def __call__(self, path: Path) -> str:
        self.release.wait(5)
        text = (path / "config.json").read_text()
        self.texts.append(text)
        if text == "bad":
            raise ValueError("bad model")
        return text


async def test_a_model_is_loaded_once_for_all_who_wait(store: LocalStore) -> None:
    artifact, loads = add(store, "a"), Loads()
    loads.release.clear()
    host = ModelHost(store, loads, capacity=2)

    async def use() -> str:
        async with host.lease(artifact.digest) as loaded:
            return loaded.model

    tasks = [asyncio.create_task(use()) for _ in range(3)]
    await asyncio.sleep(0.1)
    tasks[0].cancel()
    loads.release.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[1:] == ["a", "a"]
    assert loads.texts == ["a"]
    host.close()


async def test_the_longest_unused_model_makes_room(store: LocalStore) -> None:
    a, b, c = (add(store, text) for text in "abc")
    host = ModelHost(store, Loads(), capacity=2)
    for artifact in (a, b, a, c):
        async with host.lease(artifact.digest):
            pass
    assert host.loaded() == [a.digest, c.digest]
    async with host.lease(a.digest), host.lease(c.digest):
        with pytest.raises(OverloadedError, match="2 are loaded"):
            async with host.lease(b.digest):
                pass
    host.close()


async def test_a_failed_load_is_forgotten(store: LocalStore) -> None:
    artifact, loads = add(store, "bad"), Loads()
    host = ModelHost(store, loads, capacity=2)
    for _ in range(2):
        with pytest.raises(ValueError, match="bad model"):
            async with host.lease(artifact.digest):
                pass
        await asyncio.sleep(0)
    assert loads.texts == ["bad", "bad"]
    assert host.loaded() == []


async def test_a_changed_byte_keeps_a_model_from_loading(store: LocalStore) -> None:
    artifact, loads = add(store, "a"), Loads()
    (artifact.path / "config.json").write_text("b")
    host = ModelHost(store, loads, capacity=2)
    with pytest.raises(ArtifactFaultError, match=r"config\.json"):
        async with host.lease(artifact.digest):
            pass
    assert loads.texts == []


class Knot:
    """A model that refers to itself, so that only the garbage collector frees it."""

    def __init__(self, _: Path) -> None:
        self.itself = self


async def test_a_loaded_model_is_not_walked_by_later_collections_and_a_dropped_one_is_freed(store: LocalStore) -> None:
    host = ModelHost(store, Knot, capacity=1)
    try:
        async with host.lease(add(store, "a").digest) as loaded:
            first = weakref.ref(loaded.model)
        del loaded
        assert not any(isinstance(one, Knot) for one in gc.get_objects())
        async with host.lease(add(store, "b").digest):
            pass
        await asyncio.sleep(0)
        async with host.lease(add(store, "c").digest):
            assert first() is None
    finally:
        host.close()
        gc.unfreeze()


async def test_what_is_no_model_is_refused(store: LocalStore, add_log: Any) -> None:
    host = ModelHost(store, Loads(), capacity=2)
    with pytest.raises(InvalidRequestError, match="expected a kind of model"):
        async with host.lease(add_log().digest):
            pass
    with pytest.raises(NotFoundError):
        async with host.lease("nothing"):
            pass
