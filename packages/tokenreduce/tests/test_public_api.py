import tokenreduce


def test_the_public_surface():
    assert sorted(tokenreduce.__all__) == [
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
    assert all(hasattr(tokenreduce, name) for name in tokenreduce.__all__)


def test_every_error_is_also_a_builtin():
    leaves = tokenreduce.TokenReduceError.__subclasses__()
    assert len(leaves) == 13
    assert all(issubclass(leaf, (ValueError, TypeError, RuntimeError, ImportError)) for leaf in leaves)
