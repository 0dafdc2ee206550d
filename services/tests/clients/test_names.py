"""Both libraries have the same clients, and those the same methods with the same parameters."""

import inspect

import pytest

from vlmpress_services import clients
from vlmpress_services.clients import aio

CLIENTS = ["ArtifactClient", "EdgeVlmClient", "EvaluationClient", "JobClient"]


def methods(kind: type) -> dict[str, list[inspect.Parameter]]:
    names = [name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))]
    return {name: list(inspect.signature(getattr(kind, name)).parameters.values()) for name in names}


def test_the_surface() -> None:
    values = ["Answer", "Connection", "GeneratedToken", "LoadedModelInfo", "Sampling", "Turn", "find_connection"]
    assert sorted(clients.__all__) == sorted([*CLIENTS, *values])
    assert sorted(aio.__all__) == CLIENTS


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_has_the_same_methods_in_both(name: str) -> None:
    assert methods(getattr(clients, name)) == methods(getattr(aio, name))
