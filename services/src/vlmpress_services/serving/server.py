"""One asynchronous gRPC server for any subset of the services."""

import logging
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vlmpress_services.errors import InvalidRequestError, ListenError
from vlmpress_services.serving.interceptors import AdmissionInterceptor, ErrorInterceptor
from vlmpress_services.serving.registry import SERVICES, build_service
from vlmpress_services.serving.service import Host
from vlmpress_services.store.local import LocalStore

MAX_REQUEST_BYTES = 16 << 20
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_SERVING = health_pb2.HealthCheckResponse.SERVING

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """What a server hosts, and where.

    Attributes:
        listen: "host:port"; port 0 takes a free one.
        store: Root of the artifact store.
        services: Names from `vlmpress_services.serving.registry.SERVICES`.
        max_concurrent: Calls that may run at a time; health checks do not count.
        reflection: None: only when `listen` is a loopback address.
        max_models: Models kept in memory at a time.
        max_batch: Answers that one model works on at a time; each needs memory for its conversation.
    """

    listen: str
    store: Path
    services: tuple[str, ...]
    max_concurrent: int = 64
    reflection: bool | None = None
    max_models: int = 8
    max_batch: int = 64

    def __post_init__(self) -> None:
        """Checks every field."""
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise InvalidRequestError(f"--listen: expected HOST:PORT, got {self.listen!r}")
        if min(self.max_concurrent, self.max_models, self.max_batch) < 1:
            raise InvalidRequestError(
                f"expected limits of at least 1, got max_concurrent {self.max_concurrent}, "
                f"max_models {self.max_models}, max_batch {self.max_batch}"
            )
        if not self.services:
            raise InvalidRequestError("services: expected at least one, got none")

    @property
    def host(self) -> str:
        """The host part of `listen`."""
        return self.listen.rpartition(":")[0]


class Server:
    """A server from `start` to `stop`; for use inside one running event loop."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.address = ""
        # Absolute, so that it can be told apart in error texts, and workers find it from anywhere.
        self._root = config.store.resolve()
        host = Host(store=LocalStore(self._root), max_models=config.max_models, max_batch=config.max_batch)
        self._services = {name: build_service(name, host) for name in config.services}
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listens; `address` is then "host:port" and the health of "" and of each service is SERVING.

        Raises:
            ListenError: The address is taken or is none of this machine's.
        """
        server = self._server = grpc.aio.server(
            interceptors=(AdmissionInterceptor(self.config.max_concurrent), ErrorInterceptor(self._root)),
            options=(
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                # Without this a second server could share the port and take half of the calls.
                ("grpc.so_reuseport", 0),
            ),
        )
        for service in self._services.values():
            service.register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._add_reflection(server)
        port = self._bind(server)
        for service in self._services.values():
            await service.start()
        await server.start()
        for name in self.config.services:
            await self._health.set(SERVICES[name], _SERVING)
        await self._health.set("", _SERVING)
        self.address = f"{self.config.host}:{port}"

    async def stop(self, grace_s: float) -> None:
        """NOT_SERVING first, then no new calls; running ones get `grace_s` to end."""
        await self._health.enter_graceful_shutdown()
        for service in self._services.values():
            await service.drain()
        if self._server is not None:
            await self._server.stop(grace_s)
        for service in self._services.values():
            await service.close()

    def _bind(self, server: grpc.aio.Server) -> int:
        if self.config.host not in LOOPBACK:
            _log.warning("listening on %s without encryption or authentication", self.config.listen)
        try:
            port = server.add_insecure_port(self.config.listen)
        except RuntimeError as error:
            raise ListenError(f"{self.config.listen}: cannot be listened on ({error})") from error
        if port == 0:
            raise ListenError(f"{self.config.listen}: cannot be listened on")
        return port

    def _add_reflection(self, server: grpc.aio.Server) -> None:
        wanted = self.config.reflection
        if wanted if wanted is not None else self.config.host in LOOPBACK:
            names = [SERVICES[name] for name in self.config.services]
            reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
