"""Models in memory: loaded once, one thread each, the longest unused one dropped for a new one."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from vlmpress.artifact import Artifact, verify
from vlmpress_services.errors import OverloadedError
from vlmpress_services.serving.collecting import growing
from vlmpress_services.serving.executor import BoundedExecutor
from vlmpress_services.store.interface import ArtifactStore
from vlmpress_services.store.kinds import check_kind

M = TypeVar("M")
LOADABLE_KINDS = ("model", "edge_model", "quantized_model")
"""Kinds of artifacts that a model is loaded from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel(Generic[M]):
    """A model, the digest of its artifact, and the one thread that may touch it."""

    digest: str
    model: M
    executor: BoundedExecutor


@dataclass(eq=False, kw_only=True, slots=True)
class _Entry(Generic[M]):
    executor: BoundedExecutor
    loading: "asyncio.Future[M]"
    num_users: int = field(default=0)


class ModelHost(Generic[M]):
    """Keeps at most `capacity` models of a store loaded."""

    def __init__(self, store: ArtifactStore, load: Callable[[Path], M], capacity: int) -> None:
        self._store = store
        self._load = load
        self._capacity = capacity
        # The longest unused comes first.
        self._entries: OrderedDict[str, _Entry[M]] = OrderedDict()

    @asynccontextmanager
    async def lease(self, ref: str) -> AsyncIterator[LoadedModel[M]]:
        """The model behind a digest or tag, loaded if need be, not dropped inside the block.

        Raises:
            NotFoundError: There is no such artifact.
            InvalidRequestError: It is no model.
            OverloadedError: `capacity` models are loaded and all in use.
            ArtifactFaultError: A byte is not as its manifest says.
        """
        artifact = await asyncio.to_thread(self._store.resolve, ref)
        check_kind("model", artifact, *LOADABLE_KINDS)
        entry = self._entries.get(artifact.digest) or self._begin(artifact)
        entry.num_users += 1
        self._entries.move_to_end(artifact.digest)
        try:
            # Shielded: a caller who leaves must not end the load for the others.
            model = await asyncio.shield(entry.loading)
            yield LoadedModel(digest=artifact.digest, model=model, executor=entry.executor)
        finally:
            entry.num_users -= 1

    def loaded(self) -> list[str]:
        """Digests of the models in memory or being loaded, the longest unused first."""
        return list(self._entries)

    def close(self) -> None:
        """Drops every model."""
        for digest in list(self._entries):
            self._drop(digest)

    def _begin(self, artifact: Artifact) -> _Entry[M]:
        if len(self._entries) >= self._capacity:
            self._drop(self._longest_unused())
        executor = BoundedExecutor(f"model {artifact.digest[:12]}")

        def load() -> M:
            verify(artifact.path)
            with growing():
                return self._load(artifact.path)

        entry = _Entry(executor=executor, loading=asyncio.ensure_future(executor.run(load)))
        self._entries[artifact.digest] = entry
        entry.loading.add_done_callback(lambda loading: self._forget_failure(artifact.digest, loading))
        return entry

    def _longest_unused(self) -> str:
        for digest, entry in self._entries.items():
            if entry.num_users == 0:
                return digest
        raise OverloadedError(f"models: {self._capacity} are loaded and in use")

    def _forget_failure(self, digest: str, loading: "asyncio.Future[M]") -> None:
        failed = loading.cancelled() or loading.exception() is not None
        entry = self._entries.get(digest)
        if failed and entry is not None and entry.loading is loading:
            self._drop(digest)

    def _drop(self, digest: str) -> None:
        self._entries.pop(digest).executor.close()
