"""Errors of tokenreduce; each says what was wrong, where, what was expected and what came."""


class TokenReduceError(Exception):
    """Base class of every error this package raises on purpose."""


class FeatureError(TokenReduceError, ValueError):
    """Features have a wrong rank, an empty side, a wrong type or values that are not finite."""


class GridError(TokenReduceError, ValueError):
    """The vision tower's tokens do not fill its patch grid, for example because the CLS token is still there."""


class PolicyError(TokenReduceError, ValueError):
    """A reduction policy has a field out of range or of an unknown name."""


class CalibrationError(TokenReduceError, ValueError):
    """No threshold can reach the wanted mean token count, or there is nothing to calibrate on."""


class BudgetError(TokenReduceError, ValueError):
    """A limit of visual tokens is below what the largest factors give, or cannot be shared over the numbers given."""


class PlaceholderError(TokenReduceError, ValueError):
    """The image placeholders of a batch, or the tensors beside them, do not match its images."""


class AttachmentError(TokenReduceError, RuntimeError):
    """A policy is attached where one is already, or detached where none is."""


class UnsupportedModelError(TokenReduceError, TypeError):
    """The model is not one that a policy can be attached to."""


class WireError(TokenReduceError, ValueError):
    """A protobuf message does not hold what it says."""


class ImageError(TokenReduceError, ValueError):
    """A file is not a whole image of a known format, or is too large."""


class EncoderError(TokenReduceError, ValueError):
    """An encoder's name or directory is not one of a vision model, or it cannot take the images."""


class PlotError(TokenReduceError, ValueError):
    """There is nothing to draw, or the picture's file name says no known format."""


class ExtraMissingError(TokenReduceError, ImportError):
    """A call needs an extra of this distribution that is not installed."""
