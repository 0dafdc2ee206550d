"""One asynchronous gRPC server for any subset of the services."""

import asyncio
import logging
from contextlib import ExitStack
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vlmpress_services.errors import ListenError
from vlmpress_services.serving.accepting import make_server
from vlmpress_services.serving.access import Access
from vlmpress_services.serving.configuration import ServerConfig
from vlmpress_services.serving.interceptors import CallInterceptor
from vlmpress_services.serving.logs import log_access
from vlmpress_services.serving.methods import methods_of
from vlmpress_services.serving.metrics import Metrics, exported
from vlmpress_services.serving.registry import SERVICES, build_service
from vlmpress_services.serving.service import Host
from vlmpress_services.serving.tls import server_credentials
from vlmpress_services.serving.tokens import TokenFile
from vlmpress_services.store.opening import is_remote, open_store

__all__ = ["Server", "ServerConfig"]

# Above the limits of the methods, so that a message somewhat too large is refused by us, with details; gRPC itself
# ends a call at once whose message is larger still, and keeps none of it.
MESSAGE_SLACK = 2
LOOK_INTERVAL_S = 1.0
# Far longer than the loading of an artifact that was fetched from a bucket; what is loaded needs its files no more.
CACHE_LEASE_S = 3600.0
_SERVING = health_pb2.HealthCheckResponse.SERVING

_log = logging.getLogger(__name__)


class Server:
    """A server from `start` to `stop`; for use inside one running event loop.

    Attributes:
        config: What it was told.
        address: "host:port" once it listens.
        metrics_address: Where Prometheus finds its metrics once it listens; empty: nowhere.

    Raises:
        InvalidRequestError: The tokens' file or a certificate cannot be read.
        RemoteStoreError: The store's bucket cannot be reached, or ignores conditions on writes.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.address = self.metrics_address = ""
        # Absolute, so that it can be told apart in error texts, and workers find it from anywhere.
        place = config.store if is_remote(config.store) else Path(config.store).resolve()
        store = open_store(place, sole_writer=config.sole_writer, cache_bytes=config.cache_bytes, lease_s=CACHE_LEASE_S)
        self._root = store.root.resolve()
        self._credentials = None if config.tls is None else server_credentials(config.tls)
        self._metrics = Metrics()
        self._exporter = ExitStack()
        host = Host(
            store=store,
            max_models=config.max_models,
            max_batch=config.max_batch,
            images=config.images,
            jobs=config.jobs,
            metrics=self._metrics,
        )
        self._services = {name: build_service(name, host) for name in config.services}
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._interceptor = CallInterceptor(
            config,
            methods_of(config.services),
            Access(None if config.tokens is None else TokenFile(config.tokens)),
            self._root,
            began=(self._metrics.began,),
            ended=(self._metrics.ended, log_access),
        )
        self._server = self._made()

    async def start(self) -> None:
        """Listens; `address` is then "host:port" and the health of "" and of each service is SERVING.

        Raises:
            ListenError: The address is taken or is none of this machine's.
        """
        self.address = f"{self.config.host}:{self._bind(self.config.listen)}"
        if self.config.metrics:
            exporter = exported(self._metrics, self.config.metrics_address)
            self.metrics_address = self._exporter.enter_context(exporter)
        for service in self._services.values():
            await service.start()
        for name in ("", *(SERVICES[name] for name in self.config.services)):
            await self._health.set(name, _SERVING)
        await self._server.start()

    async def wait_ended(self) -> None:
        """Waits until the server has stopped; raises what ended it where nobody stopped it."""
        while await self._server.wait_for_termination(LOOK_INTERVAL_S):
            pass

    async def stop(self, grace_s: float) -> None:
        """NOT_SERVING first, then no new calls; running ones get `grace_s` to end, and are then cancelled."""
        await self._health.enter_graceful_shutdown()
        draining = [service.drain() for service in self._services.values()]
        await asyncio.gather(self._server.stop(grace_s), *draining)
        for service in self._services.values():
            await service.close()
        self._exporter.close()

    def _made(self) -> grpc.aio.Server:
        server = make_server(
            self._interceptor,
            self._interceptor.refuse,
            max_receive_message_length=MESSAGE_SLACK * self.config.max_message_bytes,
            # Without this a second server could share the port and take half of the calls.
            so_reuseport=0,
        )
        for service in self._services.values():
            service.register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._add_reflection(server)
        return server

    def _bind(self, listen: str) -> int:
        if self.config.insecure and not self.config.is_loopback:
            _log.warning("listening on %s without encryption or without access control", listen)
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, self._credentials)
        except RuntimeError as error:
            raise ListenError(f"{listen}: cannot be listened on ({error})") from error
        if port == 0:
            raise ListenError(f"{listen}: cannot be listened on")
        return port

    def _add_reflection(self, server: grpc.aio.Server) -> None:
        wanted = self.config.reflection
        if wanted if wanted is not None else self.config.is_loopback:
            names = [SERVICES[name] for name in self.config.services]
            reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
