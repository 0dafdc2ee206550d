"""Fewer visual tokens where an image has little to say (DFMR of LLaVA-Zip)."""

from tokenreduce.attachment import ReductionHandle, attach, detach
from tokenreduce.budget import allocate, plan_budget
from tokenreduce.calibration import calibrate_shares, calibrate_tau
from tokenreduce.dfmr import Reduction, dfmr, num_tokens, pool_grids
from tokenreduce.encoders.opening import encode_files, open_encoder
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
from tokenreduce.reducers.attention_selection import AttentionSelection
from tokenreduce.reducers.counted import CountedReducer, CountsOf
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.reducers.image_downsampling import ImageDownsampling
from tokenreduce.reducers.random_drop import RandomDrop
from tokenreduce.reducers.random_pooling import RandomPooling
from tokenreduce.reducers.token_merging import TokenMerging
from tokenreduce.running_calibration import CalibrationSettings, RunningCalibration, calibrate
from tokenreduce.sigma import sigma_per_factor, sigmas_of_grids
from tokenreduce.training.augmentation import AtEveryFactor, ImageFactorCollator
from tokenreduce.training.callback import ReductionCallback
from tokenreduce.training.schedules import ConstantSchedule, LearningRateSchedule, PiecewiseSchedule, ReductionSchedule
from tokenreduce.vision import features_of, views_of

__all__ = [
    "AtEveryFactor",
    "AttachmentError",
    "AttentionSelection",
    "BudgetError",
    "CalibrationDistribution",
    "CalibrationError",
    "CalibrationSettings",
    "ConstantSchedule",
    "CountedReducer",
    "CountsOf",
    "DfmrReducer",
    "EncoderError",
    "ExtraMissingError",
    "FeatureError",
    "FixedPooling",
    "GridError",
    "ImageDownsampling",
    "ImageError",
    "ImageFactorCollator",
    "ImagePlan",
    "LearningRateSchedule",
    "PiecewiseSchedule",
    "PlaceholderError",
    "PlotError",
    "PolicyError",
    "RandomDrop",
    "RandomPooling",
    "Reduction",
    "ReductionCallback",
    "ReductionHandle",
    "ReductionPolicy",
    "ReductionSchedule",
    "RunningCalibration",
    "TokenMerging",
    "TokenReduceError",
    "UnsupportedModelError",
    "WireError",
    "allocate",
    "attach",
    "calibrate",
    "calibrate_shares",
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
