"""Errors of stagetrain; each is also the builtin it resembles."""


class StageTrainError(Exception):
    """Base of everything stagetrain raises on bad input."""


class ScheduleError(StageTrainError, ValueError):
    """A stage or a schedule is not possible."""


class UnknownSchemeError(StageTrainError, LookupError):
    """No scheme has this name."""


class UnknownCompressorError(StageTrainError, LookupError):
    """No compressor has this name."""


class CompressionError(StageTrainError, ValueError):
    """A compressor cannot do what is asked of it, or what was saved of one is damaged."""


class PoolingUnsupportedError(StageTrainError, TypeError):
    """Visual tokens of this model, or of this call, cannot be pooled inside the decoder."""


class TemplateError(StageTrainError, ValueError):
    """The chat template does not give text that can be trained on as it is served."""


class SampleError(StageTrainError, ValueError):
    """A sample has no answer, or one that does not fit."""


class ImageUnreadableError(StageTrainError, ValueError):
    """An image file is missing or cannot be decoded."""


class ConfigError(StageTrainError, ValueError):
    """A training setting is out of its range."""


class CheckpointError(StageTrainError, ValueError):
    """A checkpoint is damaged or belongs to another run."""


class DivergedError(StageTrainError, ArithmeticError):
    """The loss is no longer a finite number."""


class PlotError(StageTrainError, ValueError):
    """There is nothing to draw, or the picture's file name says no known format."""


class ExtraMissingError(StageTrainError, ImportError):
    """An optional dependency is not installed."""


class TooManySkippedError(StageTrainError, ValueError):
    """More samples had to be left out than the run allows."""


class FeatureCacheError(StageTrainError, TypeError):
    """The features of this model, or of this call, cannot be kept."""
