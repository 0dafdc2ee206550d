"""The kinds of models a reducer can be attached to, by `config.model_type`."""

from typing import Any

from tokenreduce.errors import UnsupportedModelError
from tokenreduce.families.family import Family

FAMILIES: dict[str, type[Family]] = {}


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
