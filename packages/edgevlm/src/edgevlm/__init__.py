"""A 2B-class edge VLM with token compressor and fusion module (AuroraEdge-V), and an engine for any VLM directory."""

from edgevlm.building.build import build, build_from_llava
from edgevlm.errors import (
    BuildError,
    EdgeVlmError,
    ImageError,
    ModelDirectoryError,
    ModelInputError,
    PromptTooLongError,
    RequestError,
    UnknownPresetError,
)
from edgevlm.model.backbone import EdgeVlmModel
from edgevlm.model.configuration import EdgeVlmConfig
from edgevlm.model.modeling import EdgeVlmForConditionalGeneration
from edgevlm.model.processing import EdgeVlmProcessor
from edgevlm.profiling.macs import prefill_macs
from edgevlm.profiling.presets import auroraedge_config, preset_config
from edgevlm.profiling.profile import Profile, profile
from edgevlm.serving.batching import Batcher
from edgevlm.serving.conversation import Conversation
from edgevlm.serving.engine import Engine
from edgevlm.serving.events import Failed, Finish, FinishReason, GeneratedToken, GenerationEvent
from edgevlm.serving.images import MAX_IMAGE_PIXELS, decode_image
from edgevlm.serving.preparing import Prepared
from edgevlm.serving.requests import GenerationRequest, Sampling, Turn
from edgevlm.spec import EdgeModelSpec

__all__ = [
    "MAX_IMAGE_PIXELS",
    "Batcher",
    "BuildError",
    "Conversation",
    "EdgeModelSpec",
    "EdgeVlmConfig",
    "EdgeVlmError",
    "EdgeVlmForConditionalGeneration",
    "EdgeVlmModel",
    "EdgeVlmProcessor",
    "Engine",
    "Failed",
    "Finish",
    "FinishReason",
    "GeneratedToken",
    "GenerationEvent",
    "GenerationRequest",
    "ImageError",
    "ModelDirectoryError",
    "ModelInputError",
    "Prepared",
    "Profile",
    "PromptTooLongError",
    "RequestError",
    "Sampling",
    "Turn",
    "UnknownPresetError",
    "auroraedge_config",
    "build",
    "build_from_llava",
    "decode_image",
    "prefill_macs",
    "preset_config",
    "profile",
]
