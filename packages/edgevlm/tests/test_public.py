from importlib.metadata import entry_points
from pathlib import Path

from transformers import AutoModelForImageTextToText

import edgevlm
from vlmpress.artifact import import_model_code

PUBLIC = {
    "MAX_IMAGE_PIXELS", "Batcher", "BuildError", "Conversation", "EdgeModelSpec", "EdgeVlmConfig", "EdgeVlmError",
    "EdgeVlmForConditionalGeneration", "EdgeVlmModel", "EdgeVlmProcessor", "Engine", "Failed", "Finish",
    "FinishReason", "GeneratedToken", "GenerationEvent", "GenerationRequest", "ImageError", "ModelDirectoryError",
    "ModelInputError", "Prepared", "Profile", "PromptTooLongError", "RequestError", "Sampling", "Turn",
    "UnknownPresetError", "auroraedge_config", "build", "build_from_llava", "decode_image", "prefill_macs",
    "preset_config", "profile",
}  # fmt: skip


def test_public_names():
    assert set(edgevlm.__all__) == PUBLIC
    assert all(hasattr(edgevlm, name) for name in PUBLIC)


def test_every_error_is_of_the_base_class_and_a_builtin():
    for name in PUBLIC:
        if name.endswith("Error") and name != "EdgeVlmError":
            error = getattr(edgevlm, name)
            assert issubclass(error, edgevlm.EdgeVlmError)
            assert issubclass(error, ValueError)


def test_only_wire_touches_messages():
    for path in Path(edgevlm.__file__).parent.glob("*.py"):
        assert path.name == "wire.py" or "_pb2" not in path.read_text(encoding="utf-8"), path


def test_entry_point_registers_the_classes(tiny, tmp_path):
    (entry_point,) = entry_points(group="vlmpress.models", name=edgevlm.EdgeVlmConfig.model_type)
    assert entry_point.load() is edgevlm
    tiny.edge().save_pretrained(tmp_path)
    import_model_code(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is edgevlm.EdgeVlmForConditionalGeneration
