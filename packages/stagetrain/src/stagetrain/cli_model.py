"""The model directory that a command is given."""

from pathlib import Path
from typing import Any

from vlmpress.cli import UserError


def load_model(directory: Path) -> tuple[Any, Any]:
    """The model, on the CPU, and its processor.

    Raises:
        UserError: The directory does not hold them.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    from vlmpress.artifact import ArtifactError, import_model_code

    # Its bars for reading a file would stand between ours and the one line of an error.
    disable_progress_bar()
    try:
        import_model_code(directory)
        model = AutoModelForImageTextToText.from_pretrained(directory)
        return model, AutoProcessor.from_pretrained(directory)
    except (ArtifactError, OSError, ValueError) as error:
        raise UserError(f"{directory}: expected a model directory with a processor, got {error}") from error
