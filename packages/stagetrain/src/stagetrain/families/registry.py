"""The kinds of models that visual tokens can be compressed in, by the name of their class."""

from typing import Any

from stagetrain.errors import PoolingUnsupportedError
from stagetrain.families.edgevlm import EdgeVlmFamily
from stagetrain.families.family import Family
from stagetrain.families.internvl import InternVLFamily
from stagetrain.families.llava import LlavaFamily
from stagetrain.families.llava_onevision import LlavaOnevisionFamily
from stagetrain.families.qwen_vl import Qwen2VLFamily, Qwen25VLFamily

FAMILIES: dict[str, type[Family]] = {
    family.model_class: family
    for family in (
        EdgeVlmFamily,
        InternVLFamily,
        LlavaFamily,
        LlavaOnevisionFamily,
        Qwen25VLFamily,
        Qwen2VLFamily,
    )
}


def family_of(model: Any) -> Family:
    """The family of a model.

    Raises:
        PoolingUnsupportedError: It has none, or it is one that cannot be compressed in.
    """
    found = next((FAMILIES[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in FAMILIES), None)
    if found is None:
        raise PoolingUnsupportedError(
            f"pooling: expected one of {', '.join(FAMILIES)}, got {type(model).__name__}: use stages without pooling"
        )
    family = found()
    family.check(model)
    return family
