"""What a server is told: addresses, access, limits, times."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.serving.deadlines import UNLIMITED, TimeLimit
from vlmpress_services.serving.images import STRICT, ImagesConfig
from vlmpress_services.serving.methods import SERVICES, WATCHES, Method, methods_of

LOOPBACK = "127.0.0.1"
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodConfig:
    """Limits of one method; None: the server's own.

    Attributes:
        max_concurrent: Calls of it that may run at a time, beside the server's limit of all.
        max_request_bytes: Of one request message.
        default_timeout_s: For callers without a deadline; 0: none.
        max_timeout_s: For all callers; 0: none.
    """

    __pydantic_config__ = STRICT
    max_concurrent: int | None = None
    max_request_bytes: int | None = None
    default_timeout_s: float | None = None
    max_timeout_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsConfig:
    """PEM files.

    Attributes:
        cert: The server's certificate, those that signed it behind it.
        key: Its private key.
        client_ca: Certificates that sign clients'; without one of theirs no call is taken.
    """

    __pydantic_config__ = STRICT
    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JobsConfig:
    """How jobs run.

    Attributes:
        max_jobs: At a time.
        max_attempts: How often a job's worker may be lost before the job fails.
        runner: "local", in a child process, or "ray", on `cluster`.
        cluster: Address of a Ray cluster's Jobs API, for example "http://head:8265"; empty: none.
    """

    __pydantic_config__ = STRICT
    max_jobs: int = 1
    max_attempts: int = 3
    runner: Literal["local", "ray"] = "local"
    cluster: str = ""


def _port_as_text(value: object) -> object:
    # YAML reads a port as a number.
    return str(value) if type(value) is int else value


def _exempt() -> dict[str, MethodConfig]:
    # A watch lasts as long as its job, a transfer as long as its line needs.
    transfer, watch = MethodConfig(default_timeout_s=3600), MethodConfig(default_timeout_s=0, max_timeout_s=0)
    return {
        "artifact.ReadFile": transfer,
        "artifact.WriteFile": transfer,
        **dict.fromkeys(WATCHES, watch),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """What a server hosts, where, for whom, and how much of it.

    Attributes:
        listen: "host:port"; port 0 takes a free one.
        store: The artifact store: a folder, or s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.
        sole_writer: Nobody else writes to that bucket, so it need not hold conditions on writes.
        cache_bytes: Of that bucket's artifacts kept on this machine beside those in use; None: as `store.url` says,
            else without a bound.
        services: Names from `vlmpress_services.serving.registry.SERVICES`.
        max_concurrent: Calls that may run at a time; health checks and those that follow jobs do not count.
        max_watching: Calls of WatchJob and ReadJobLog that may run at a time.
        max_request_bytes: Of one request message.
        default_timeout_s: Of calls whose caller sets no deadline; 0: none.
        max_timeout_s: Of any call; 0: none.
        methods: What is different for single methods, by "service.Method".
        reflection: None: only when `listen` is a loopback address.
        max_models: Models kept in memory at a time.
        max_batch: Answers that one model works on at a time; each needs memory for its conversation.
        images: What images a request may bring.
        jobs: How jobs run.
        tls: None: no encryption.
        tokens: File of bearer tokens; None: nobody needs one.
        insecure: An address that others reach may do without encryption and without access control.
        metrics: "host:port", or a port of the loopback address, for Prometheus; empty: none.
        log_format: Of standard error: one JSON object a line, or text.
        grace_s: How long running calls get to end when the server stops.
    """

    __pydantic_config__ = STRICT
    listen: str = f"{LOOPBACK}:0"
    store: str | Path
    sole_writer: bool = False
    cache_bytes: int | None = None
    services: tuple[str, ...]
    max_concurrent: int = 64
    max_watching: int = 256
    max_request_bytes: int = 16 * MIB
    default_timeout_s: float = 600.0
    max_timeout_s: float = 3600.0
    methods: Mapping[str, MethodConfig] = field(default_factory=_exempt)
    reflection: bool | None = None
    max_models: int = 8
    max_batch: int = 64
    images: ImagesConfig = field(default_factory=ImagesConfig)
    jobs: JobsConfig = field(default_factory=JobsConfig)
    tls: TlsConfig | None = None
    tokens: Path | None = None
    insecure: bool = False
    metrics: Annotated[str, BeforeValidator(_port_as_text)] = ""
    log_format: Literal["json", "text"] = "json"
    grace_s: float = 5.0

    def __post_init__(self) -> None:
        """Checks every field."""
        _check_address("listen", self.listen)
        if self.metrics:
            _check_address("metrics", self.metrics_address)
        if not self.services:
            raise InvalidRequestError("services: expected at least one, got none")
        for name in ("max_concurrent", "max_watching", "max_request_bytes", "max_models", "max_batch"):
            _check_least(name, getattr(self, name), 1)
        _check_least("cache_bytes", self.cache_bytes or 0, 0)
        for name in ("default_timeout_s", "max_timeout_s", "grace_s"):
            _check_least(name, getattr(self, name), 0)
        for name in ("max_images", "max_image_bytes", "max_pixels"):
            _check_least(f"images.{name}", getattr(self.images, name), 1)
        for name in ("max_jobs", "max_attempts"):
            _check_least(f"jobs.{name}", getattr(self.jobs, name), 1)
        if self.jobs.runner == "ray" and not self.jobs.cluster:
            raise InvalidRequestError("jobs.cluster: expected an address with jobs.runner ray, got none")
        for method, config in self.methods.items():
            _check_method(method, config)
        self._check_exposure()

    @property
    def host(self) -> str:
        """The host part of `listen`."""
        return self.listen.rpartition(":")[0]

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches `listen`."""
        return _is_loopback(self.host)

    @property
    def metrics_address(self) -> str:
        """`metrics` with its host."""
        return f"{LOOPBACK}:{self.metrics}" if self.metrics.isdigit() else self.metrics

    @property
    def max_message_bytes(self) -> int:
        """The largest request message that any method takes."""
        return max([self.max_request_bytes, *(config.max_request_bytes or 0 for config in self.methods.values())])

    def max_concurrent_of(self, method: str) -> int | None:
        """Calls of the method that may run at a time; None: only the limit of all counts."""
        return self._of(method).max_concurrent

    def max_request_bytes_of(self, method: str) -> int:
        """Of one request message of the method."""
        return self._of(method).max_request_bytes or self.max_request_bytes

    def time_limit_of(self, method: Method) -> TimeLimit:
        """How long a call of the method may take; health and reflection streams stay open."""
        if method.is_infrastructure:
            return UNLIMITED
        own = self._of(method.name)
        return TimeLimit(
            default_s=self.default_timeout_s if own.default_timeout_s is None else own.default_timeout_s,
            max_s=self.max_timeout_s if own.max_timeout_s is None else own.max_timeout_s,
        )

    def _of(self, method: str) -> MethodConfig:
        return self.methods.get(method, _NOTHING_OF_ITS_OWN)

    def _check_exposure(self) -> None:
        guarded = self.tls is not None and (self.tokens is not None or self.tls.client_ca is not None)
        if not (self.is_loopback or guarded or self.insecure):
            raise InvalidRequestError(
                f"listen: {self.listen} can be reached from other machines: expected tls with tokens or a client_ca, "
                "or insecure, got neither"
            )


_NOTHING_OF_ITS_OWN = MethodConfig()


def _check_address(name: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidRequestError(f"{name}: expected HOST:PORT, got {address!r}")


def _check_least(name: str, value: float, least: int) -> None:
    if not value >= least:  # also refuses NaN
        raise InvalidRequestError(f"{name}: expected at least {least}, got {value:g}")


def _check_method(name: str, config: MethodConfig) -> None:
    service = name.partition(".")[0]
    known = {method.name for method in methods_of([service]).values()} if service in SERVICES else set()
    if name not in known:
        raise InvalidRequestError(f"methods: expected names like edgevlm.Generate, got {name!r}")
    for limit in fields(config):
        value = getattr(config, limit.name)
        if value is not None:
            _check_least(f"methods.{name}.{limit.name}", value, 0 if limit.name.endswith("_s") else 1)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
