"""A 2B-class edge VLM with token compressor and fusion module (AuroraEdge-V), and an engine for any VLM directory."""

from edgevlm.backbone import EdgeVlmModel
from edgevlm.build import build, build_from_llava
from edgevlm.configuration import EdgeVlmConfig
from edgevlm.engine import Engine
from edgevlm.errors import (
    BuildError,
    EdgeVlmError,
    ImageError,
    ModelDirectoryError,
    ModelInputError,
    PromptTooLongError,
    RequestError,
)
from edgevlm.events import Finish, FinishReason, GeneratedToken, GenerationEvent
from edgevlm.images import MAX_IMAGE_PIXELS, decode_image
from edgevlm.macs import prefill_macs
from edgevlm.modeling import EdgeVlmForConditionalGeneration
from edgevlm.processing import EdgeVlmProcessor
from edgevlm.profile import Profile, auroraedge_config, profile
from edgevlm.spec import EdgeModelSpec

__all__ = [
    "MAX_IMAGE_PIXELS",
    "BuildError",
    "EdgeModelSpec",
    "EdgeVlmConfig",
    "EdgeVlmError",
    "EdgeVlmForConditionalGeneration",
    "EdgeVlmModel",
    "EdgeVlmProcessor",
    "Engine",
    "Finish",
    "FinishReason",
    "GeneratedToken",
    "GenerationEvent",
    "ImageError",
    "ModelDirectoryError",
    "ModelInputError",
    "Profile",
    "PromptTooLongError",
    "RequestError",
    "auroraedge_config",
    "build",
    "build_from_llava",
    "decode_image",
    "prefill_macs",
    "profile",
]
