import ast
from pathlib import Path

import stagetrain

PUBLIC = {
    "SCHEMES",
    "TABLE_1",
    "Attachment",
    "Batches",
    "AverageCost",
    "CompressionSetting",
    "DecoderShape",
    "ConversationCollator",
    "ImageGroups",
    "LearningRateCurve",
    "Sample",
    "Schedule",
    "Stage",
    "StageCost",
    "StageTrainError",
    "StageTrainer",
    "SingleRecords",
    "TrainResult",
    "attach",
    "always_compressed",
    "auroraedge_schedule",
    "average_cost",
    "compression_ratio_percent",
    "cache_vision_features",
    "draw_questions",
    "edge_schedule",
    "load_compression",
    "named_schedule",
    "plan_schedule",
    "save_compression",
    "schedule_costs",
    "train",
    "visual_token_count",
}


def test_the_public_names_are_pinned() -> None:
    assert set(stagetrain.__all__) == PUBLIC
    assert all(hasattr(stagetrain, name) for name in PUBLIC)


def test_the_package_file_only_imports() -> None:
    tree = ast.parse(Path(stagetrain.__file__).read_text(encoding="utf-8"))
    kinds = [type(node) for node in tree.body]
    assert set(kinds) <= {ast.Expr, ast.ImportFrom, ast.Assign}


def test_errors_are_also_builtins() -> None:
    from stagetrain import errors

    leaves = [value for value in vars(errors).values() if isinstance(value, type) and value.__base__ is not Exception]
    assert leaves
    for leaf in leaves:
        assert issubclass(leaf, stagetrain.StageTrainError)
        assert any(base.__module__ == "builtins" and base is not Exception for base in leaf.__bases__)
