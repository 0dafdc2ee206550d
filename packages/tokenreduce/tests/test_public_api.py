import tokenreduce

PUBLIC = [
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


def test_the_public_surface():
    assert sorted(tokenreduce.__all__) == PUBLIC
    assert all(hasattr(tokenreduce, name) for name in tokenreduce.__all__)


def test_every_error_is_also_a_builtin():
    leaves = tokenreduce.TokenReduceError.__subclasses__()
    assert len(leaves) == 13
    assert all(issubclass(leaf, (ValueError, TypeError, RuntimeError, ImportError)) for leaf in leaves)
