"""Errors of verbdistill; every message says what, where, what was expected and what came."""


class VerbDistillError(Exception):
    """Base of all errors of this package."""


class ConfigError(VerbDistillError, ValueError):
    """A configuration value is not what the field asks for."""


class MatchingError(VerbDistillError, ValueError):
    """Layers cannot be matched: a bad matrix, scale or strategy."""


class TargetError(VerbDistillError, ValueError):
    """Target layers do not fit the models."""


class UnsupportedModelError(VerbDistillError, TypeError):
    """A model is not built like Llava: no decoder layers, final norm or head where they are looked for."""


class BatchError(VerbDistillError, ValueError):
    """A training batch cannot be used."""


class VocabularyMismatchError(VerbDistillError, ValueError):
    """Teacher and student number their words differently."""


class NonFiniteLossError(VerbDistillError, ArithmeticError):
    """A loss became NaN or infinite."""


class CheckpointError(VerbDistillError, ValueError):
    """A checkpoint belongs to another run or cannot be read."""


class VerbalizersError(VerbDistillError, ValueError):
    """Verbalizers do not fit a model, or their files are not what they should be."""


class ReportError(VerbDistillError, ValueError):
    """A report of a distillation is missing or is not what it should be."""


class PlotError(VerbDistillError, ValueError):
    """There is nothing to draw, or the picture's file name says no known format."""


class ExtraMissingError(VerbDistillError, ImportError):
    """An optional dependency is not installed."""


class TeacherCacheError(VerbDistillError, ValueError):
    """A teacher's answer kept on disk is damaged, or none can be kept there."""
