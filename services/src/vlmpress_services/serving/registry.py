"""The services by name: where their code is and what they need installed."""

import importlib
import importlib.util

from vlmpress_services.errors import PACKAGES, ExtraMissingError, InvalidRequestError
from vlmpress_services.serving.methods import SERVICES
from vlmpress_services.serving.service import Host, Service

__all__ = ["SERVICES", "build_service", "is_installed", "parse_services"]


def parse_services(text: str) -> tuple[str, ...]:
    """Names from "all" or a comma-separated list, in the order of `SERVICES`, each installed.

    Raises:
        InvalidRequestError: A name is unknown, or none is given.
        ExtraMissingError: A service's package is not installed; names the extra.
    """
    wanted = set(SERVICES) if text.strip() == "all" else {name.strip() for name in text.split(",")}
    unknown = sorted(wanted - set(SERVICES))
    if unknown:
        raise InvalidRequestError(f"services: expected all or some of {', '.join(SERVICES)}, got {unknown[0]!r}")
    names = tuple(name for name in SERVICES if name in wanted)
    missing = [name for name in names if name in PACKAGES and not is_installed(name)]
    if missing:
        extras = ",".join(missing)
        raise ExtraMissingError(f"services {extras}: not installed; pip install 'vlmpress-services[{extras}]'")
    return names


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder that merely has its name does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def build_service(name: str, host: Host) -> Service:
    """The named service; only now its package is imported."""
    module = importlib.import_module(f"vlmpress_services.{name}_service")
    service: Service = module.build(host)
    return service
