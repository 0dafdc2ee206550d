"""What several kinds of jobs ask before they begin: workers, and installed packages."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from vlmpress_services.errors import ExtraMissingError

MAX_PROCESSES = 256


def check_ray(fields: str) -> None:
    """Raises ExtraMissingError unless Ray is installed, which these fields ask for."""
    if find_spec("ray") is None:
        raise ExtraMissingError(f"{fields}: Ray not installed; pip install 'vlmpress-services[ray]' on the server")


def most_processes() -> int:
    """How many workers a run may ask for."""
    # A cluster of the server's own has one core for each worker, or two on a machine with one.
    return MAX_PROCESSES if os.environ.get("RAY_ADDRESS") else max(2, os.cpu_count() or 1)


@contextmanager
def imported(work: str, extra: str) -> Iterator[None]:
    """A block that imports what only an extra brings; raises ExtraMissingError, naming it, where that is missing."""
    try:
        yield
    except ImportError as error:
        raise ExtraMissingError(
            f"{work}: package not installed ({error}); pip install 'vlmpress-services[{extra}]' on the server"
        ) from error
