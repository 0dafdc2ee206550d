"""What kinds of artifacts a field may name."""

from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.store.interface import Described

MODEL_KINDS = ("model", "edge_model")
"""Kinds of artifacts that hold a model's own weights."""


def check_kind(field: str, artifact: Described, *kinds: str) -> None:
    """Raises InvalidRequestError unless the artifact that a field names is of one of these kinds."""
    if artifact.manifest.kind not in kinds:
        raise InvalidRequestError(f"{field}: expected a kind of {', '.join(kinds)}, got {artifact.manifest.kind}")
