"""How each kind of model turns images into visual tokens; `registry.family_of` finds the one of a model."""

from tokenreduce.families.family import Encoded, Family
from tokenreduce.families.registry import family_of

__all__ = ["Encoded", "Family", "family_of"]
