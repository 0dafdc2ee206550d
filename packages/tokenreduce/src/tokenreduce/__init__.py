"""Fewer visual tokens where an image has little to say (DFMR of LLaVA-Zip)."""

from tokenreduce.attachment import ReductionHandle, attach, detach
from tokenreduce.calibration import calibrate, calibrate_tau
from tokenreduce.dfmr import Reduction, dfmr, num_tokens, sigma_per_factor
from tokenreduce.errors import (
    AttachmentError,
    BudgetError,
    CalibrationError,
    EncoderError,
    ExtraMissingError,
    FeatureError,
    GridError,
    ImageError,
    PlaceholderError,
    PolicyError,
    TokenReduceError,
    UnsupportedModelError,
    WireError,
)
from tokenreduce.planning import ImagePlan, plan
from tokenreduce.policy import CalibrationDistribution, ReductionPolicy
from tokenreduce.vision import features_of

__all__ = [
    "AttachmentError",
    "BudgetError",
    "CalibrationDistribution",
    "CalibrationError",
    "EncoderError",
    "ExtraMissingError",
    "FeatureError",
    "GridError",
    "ImageError",
    "ImagePlan",
    "PlaceholderError",
    "PolicyError",
    "Reduction",
    "ReductionHandle",
    "ReductionPolicy",
    "TokenReduceError",
    "UnsupportedModelError",
    "WireError",
    "attach",
    "calibrate",
    "calibrate_tau",
    "detach",
    "dfmr",
    "features_of",
    "num_tokens",
    "plan",
    "sigma_per_factor",
]
