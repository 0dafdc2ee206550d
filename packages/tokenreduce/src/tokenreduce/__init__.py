"""Fewer visual tokens where an image has little to say (DFMR of LLaVA-Zip)."""

from tokenreduce.attachment import ReductionHandle, attach, detach
from tokenreduce.budget import allocate, plan_budget
from tokenreduce.calibration import calibrate, calibrate_shares, calibrate_sigmas, calibrate_tau
from tokenreduce.dfmr import Reduction, dfmr, num_tokens, pool_grids
from tokenreduce.encoding import encode_files, open_encoder
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
    PlotError,
    PolicyError,
    TokenReduceError,
    UnsupportedModelError,
    WireError,
)
from tokenreduce.grids import unpack_naflex, unpad
from tokenreduce.planning import ImagePlan, plan
from tokenreduce.policy import CalibrationDistribution, ReductionPolicy
from tokenreduce.running_calibration import CalibrationSettings, RunningCalibration
from tokenreduce.sigma import sigma_per_factor, sigmas_of_grids
from tokenreduce.vision import features_of, views_of

__all__ = [
    "AttachmentError",
    "BudgetError",
    "CalibrationDistribution",
    "CalibrationError",
    "CalibrationSettings",
    "EncoderError",
    "ExtraMissingError",
    "FeatureError",
    "GridError",
    "ImageError",
    "ImagePlan",
    "PlaceholderError",
    "PlotError",
    "PolicyError",
    "Reduction",
    "ReductionHandle",
    "ReductionPolicy",
    "RunningCalibration",
    "TokenReduceError",
    "UnsupportedModelError",
    "WireError",
    "allocate",
    "attach",
    "calibrate",
    "calibrate_shares",
    "calibrate_sigmas",
    "calibrate_tau",
    "detach",
    "dfmr",
    "encode_files",
    "features_of",
    "num_tokens",
    "open_encoder",
    "plan",
    "plan_budget",
    "pool_grids",
    "sigma_per_factor",
    "sigmas_of_grids",
    "unpack_naflex",
    "unpad",
    "views_of",
]
