"""Where work runs: in this process, or on Ray through `workers`; the results are the same."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, Protocol

from vlmpress.cli import UserError

OnProgress = Callable[[int, int, str], None]


class Runner(Protocol):
    """Runs functions of importable modules with picklable arguments."""

    name: str

    def call(self, function: Callable[..., Any], *arguments: Any, on_progress: OnProgress) -> Any:
        """`function(*arguments, on_progress=...)`, wherever it runs."""

    def map(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], on_progress: OnProgress
    ) -> list[Any]:
        """`function(*each)` for each, results in order; progress counts finished calls."""


class LocalRunner:
    """Runs everything in this process, one after another."""

    name = "local"

    def call(self, function: Callable[..., Any], *arguments: Any, on_progress: OnProgress) -> Any:
        """Calls at once."""
        return function(*arguments, on_progress=on_progress)

    def map(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], on_progress: OnProgress
    ) -> list[Any]:
        """Calls one after another."""
        results = []
        for number, each in enumerate(arguments, 1):
            results.append(function(*each))
            on_progress(number, len(arguments), "")
        return results


def open_runner(name: str) -> AbstractContextManager[Runner]:
    """A runner for the length of a block; "auto" is Ray when it is installed.

    Raises:
        UserError: Ray was asked for and is not installed.
    """
    has_ray = find_spec("ray") is not None
    if name == "local" or (name == "auto" and not has_ray):
        return nullcontext(LocalRunner())
    if not has_ray:
        raise UserError("runner ray: expected Ray to be installed (pip install 'vlmpress-services[ray]')")
    from vlmpress_services.workers.ray_runner import ray_runner

    return ray_runner()
