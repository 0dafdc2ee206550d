"""What runs work, and the runner that needs nothing: this process."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

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
