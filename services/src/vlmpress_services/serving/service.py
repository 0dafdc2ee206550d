"""What a server asks of each service it hosts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import grpc

from vlmpress_services.serving.configuration import JobsConfig
from vlmpress_services.serving.images import ImagesConfig
from vlmpress_services.serving.metrics import Metrics
from vlmpress_services.store.interface import ArtifactStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """What a service gets from its server.

    Attributes:
        store: Where artifacts are found.
        max_models: Models kept in memory at a time.
        max_batch: Answers that one model works on at a time.
        images: What images a request may bring.
        jobs: How jobs run.
        metrics: Where a service counts what only it knows.
        loaded: Each gives the digests that a service holds in memory; services add theirs, garbage collection asks.
    """

    store: ArtifactStore
    max_models: int = 8
    max_batch: int = 64
    images: ImagesConfig = field(default_factory=ImagesConfig)
    jobs: JobsConfig = field(default_factory=JobsConfig)
    metrics: Metrics = field(default_factory=Metrics)
    loaded: list[Callable[[], Iterable[str]]] = field(default_factory=list)


class Service(ABC):
    """A servicer with a beginning and an end; its module's `build(host)` makes one."""

    @abstractmethod
    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""

    async def start(self) -> None:
        """Starts background work; called once, before the server takes calls."""
        return

    async def drain(self) -> None:
        """Ends streams that would otherwise stay open; called once, when the server begins to stop."""
        return

    async def close(self) -> None:
        """Ends background work; called once, when no call runs any more."""
        return
