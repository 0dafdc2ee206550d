"""Errors of edgevlm; each message says what, where, what was expected and what came."""


class EdgeVlmError(Exception):
    """Base of every error this package raises on bad input."""


class ModelDirectoryError(EdgeVlmError, ValueError):
    """A directory does not hold a model and processor that can be loaded."""


class ImageError(EdgeVlmError, ValueError):
    """Image bytes are not one complete PNG or JPEG within the limits."""


class RequestError(EdgeVlmError, ValueError):
    """A generation request cannot be served as it stands."""


class PromptTooLongError(RequestError):
    """A prompt leaves no position for an answer."""


class ModelInputError(EdgeVlmError, ValueError):
    """Tensors given to the edge model contradict each other."""


class BuildError(EdgeVlmError, ValueError):
    """An edge model cannot be built from the given parts."""


class UnknownPresetError(EdgeVlmError, ValueError):
    """There is no architecture of that name."""


class BenchError(EdgeVlmError, ValueError):
    """A bench cannot be run or resumed as it was asked for, or one of its processes failed."""
