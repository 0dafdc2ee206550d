"""The kinds of models a reducer can be attached to, by `config.model_type`."""

from typing import Any

from tokenreduce.errors import UnsupportedModelError
from tokenreduce.families.edgevlm import EdgeVlmFamily
from tokenreduce.families.family import Family
from tokenreduce.families.internvl import InternVLFamily
from tokenreduce.families.llava import LlavaFamily
from tokenreduce.families.llava_next import LlavaNextFamily
from tokenreduce.families.llava_onevision import LlavaOnevisionFamily
from tokenreduce.families.qwen_vl import Qwen2VLFamily, Qwen25VLFamily

FAMILIES: dict[str, type[Family]] = {
    "edgevlm": EdgeVlmFamily,
    "internvl": InternVLFamily,
    "llava": LlavaFamily,
    "llava_next": LlavaNextFamily,
    "llava_onevision": LlavaOnevisionFamily,
    "qwen2_5_vl": Qwen25VLFamily,
    "qwen2_vl": Qwen2VLFamily,
}


def family_of(model: Any) -> Family:
    """The family of a model.

    Raises:
        UnsupportedModelError: No family has its model type, or the model is not the class with the head.
    """
    family = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", None) or "")
    if family is None or all(kind.__name__ != family.model_class for kind in type(model).__mro__):
        expected = ", ".join(sorted(family.model_class for family in FAMILIES.values()))
        raise UnsupportedModelError(f"model: expected one of {expected}, got {type(model).__name__}")
    return family()
