import verbdistill


def test_public_names():
    assert verbdistill.__all__ == [
        "BatchError",
        "CheckpointError",
        "ConfigError",
        "DistillConfig",
        "DistillResult",
        "MatchingError",
        "NonFiniteLossError",
        "Pair",
        "ResponseStates",
        "TargetError",
        "UnsupportedModelError",
        "VerbDistillError",
            "Verbalizers",
        "VerbalizersError",
        "VocabularyMismatchError",
        "ar_loss",
        "check_vocabularies",
        "default_targets",
        "distill",
        "interaction_loss",
        "kl_loss",
        "kl_matrix",
        "load_verbalizers",
        "match_layers",
        "report",
        "response_states",
        "save_student",
        "save_verbalizers",
    ]
    assert all(hasattr(verbdistill, name) for name in verbdistill.__all__)
