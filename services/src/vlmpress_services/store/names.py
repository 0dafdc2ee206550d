"""Digests and tag names."""

import re

from vlmpress_services.errors import InvalidRequestError

DIGEST = re.compile(r"[0-9a-f]{64}")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_digest(text: str) -> bool:
    """Whether this is 64 lower-case hex digits."""
    return DIGEST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether a tag may have this name."""
    return TAG.fullmatch(text) is not None and not is_digest(text)


def check_digest(text: str, what: str = "digest") -> None:
    """Raises InvalidRequestError for what is no digest."""
    if not is_digest(text):
        raise InvalidRequestError(f"{what}: expected a digest of 64 hex digits, got {text[:80]!r}")


def check_tag(text: str) -> None:
    """Raises InvalidRequestError for what no tag may be called."""
    if not is_tag(text):
        raise InvalidRequestError(
            "expected a digest of 64 hex digits or a tag of at most 128 letters, digits, '.', '_', '-', "
            f"got {text[:160]!r}"
        )
