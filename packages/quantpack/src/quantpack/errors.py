"""Errors of quantpack; each message says what, where, what was expected and what came."""


class QuantpackError(Exception):
    """Base of every error that quantpack raises on purpose."""


class SchemeError(QuantpackError, ValueError):
    """A quantization scheme that does not exist."""


class WeightError(QuantpackError, ValueError):
    """A tensor that cannot be quantized."""


class CalibrationError(QuantpackError, ValueError):
    """Calibration data that does not fit the weights, or that no method can use."""


class SearchError(QuantpackError, ValueError):
    """A search that cannot start: nothing to search, or a floor that no layout holds."""


class MissingExtraError(QuantpackError, ImportError):
    """A library that only some of the package needs is not installed; names the extra that brings it."""


class SourceError(QuantpackError, ValueError):
    """What was to be packed is no model directory and no safetensors file."""


class OutputExistsError(QuantpackError, FileExistsError):
    """The path to write to is taken."""


class NotAPackError(QuantpackError, ValueError):
    """A directory that holds something else than a pack."""


class CorruptPackError(QuantpackError, ValueError):
    """A pack whose bytes are not what its manifest and index say."""


class ModelMismatchError(QuantpackError, RuntimeError):
    """A pack's tensors are not those of the model its config describes."""


class PackedModelError(QuantpackError, ValueError):
    """A model with packed weights was asked for what only one with ordinary weights can do."""
