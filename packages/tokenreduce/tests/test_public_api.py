import tokenreduce


def test_the_public_surface():
    assert sorted(tokenreduce.__all__) == [
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
    assert all(hasattr(tokenreduce, name) for name in tokenreduce.__all__)


def test_every_error_is_also_a_builtin():
    leaves = tokenreduce.TokenReduceError.__subclasses__()
    assert len(leaves) == 12
    assert all(issubclass(leaf, (ValueError, TypeError, RuntimeError, ImportError)) for leaf in leaves)
