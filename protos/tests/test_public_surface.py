"""What the contracts offer, name by name: a change here is a change of the contract."""

import importlib
import pkgutil

import pytest

import vlmpress.artifact
import vlmpress.cli
import vlmpress.data

SURFACE = {
    "vlmpress.artifact": [
        "COMPRESSION_FILE",
        "COMPRESSION_WEIGHTS_FILE",
        "POLICY_FILE",
        "Artifact",
        "ArtifactError",
        "ArtifactFaultError",
        "Draft",
        "ExtensionMissingError",
        "Spec",
        "check_files",
        "compression_attachment",
        "create",
        "digest_bytes",
        "digest_file",
        "flush",
        "flush_tree",
        "from_json_bytes",
        "import_model_code",
        "make_folder",
        "quantized_loader",
        "read",
        "reducer_attachment",
        "to_json_bytes",
        "verify",
        "whole_directory",
        "whole_file",
        "write_policy",
    ],
    "vlmpress.data": [
        "IMAGE_MARK",
        "DataError",
        "QuestionPrior",
        "Record",
        "RecordFile",
        "Turn",
        "chat_messages",
        "load_records",
        "open_records",
        "question_type",
        "question_types",
        "split_records",
        "write_records",
    ],
    "vlmpress.cli": ["CheckFailedError", "Progress", "UserError", "progress", "run"],
}


@pytest.mark.parametrize("name", SURFACE)
def test_surface(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__ == SURFACE[name]
    assert all(hasattr(module, each) for each in module.__all__)


def test_nothing_else_is_in_the_namespace() -> None:
    areas = ["dataset", "edgevlm", "evaluation", "job", "quantpack", "stagetrain", "tokenreduce", "verbdistill"]
    assert sorted(module.name for module in pkgutil.iter_modules(vlmpress.__path__)) == ["artifact", "cli", "data"]
    assert all(importlib.import_module(f"vlmpress.{area}.v1") for area in areas)


def test_errors_are_what_callers_catch() -> None:
    assert issubclass(vlmpress.artifact.ArtifactFaultError, vlmpress.artifact.ArtifactError)
    assert issubclass(vlmpress.artifact.ArtifactFaultError, ValueError)
    assert issubclass(vlmpress.artifact.ExtensionMissingError, ImportError)
    assert issubclass(vlmpress.data.DataError, ValueError)
