"""What the manifests of artifacts made here name as their producer."""

from importlib.metadata import version

DISTRIBUTION = "vlmpress-services"


def producer() -> tuple[str, str]:
    """This distribution and its version."""
    return DISTRIBUTION, version(DISTRIBUTION)
