"""Loads a model directory for serving, with the compression it was trained to keep."""

from pathlib import Path

from edgevlm.engine import Engine
from vlmpress_services.errors import ExtraMissingError

# As stagetrain.attaching.saved_setting names it; whether it is there must be known without stagetrain too.
COMPRESSION_FILE = "visual_compression.json"


def load_engine(directory: Path) -> Engine:
    """As `Engine.load`; a model that was trained always compressed answers compressed.

    Raises:
        ExtraMissingError: It keeps a compression and stagetrain is not installed: served plain it would answer wrongly.
        stagetrain.StageTrainError: What it keeps is damaged or of another model.
    """
    if not (directory / COMPRESSION_FILE).exists():
        return Engine.load(directory)
    try:
        from stagetrain.attaching.saved_setting import load_compression
    except ImportError as error:
        raise ExtraMissingError(
            f"{directory}: {COMPRESSION_FILE}: expected stagetrain installed, which compresses as the model was trained"
            " to; pip install 'vlmpress-services[stagetrain]' on the server"
        ) from error
    engine = Engine.load(directory)
    # The model's hooks keep the handle alive.
    load_compression(engine.model, directory)
    return engine
