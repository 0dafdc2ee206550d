"""Errors of artifact directories."""


class ArtifactError(Exception):
    """An artifact cannot be written, found or read."""


class ArtifactFaultError(ArtifactError, ValueError):
    """An artifact's bytes are not what its manifest says."""


class ExtensionMissingError(ArtifactError, ImportError):
    """A directory names code that no installed distribution offers."""
