"""Where each kind of model puts its visual tokens; `registry.family_of` finds the one of a model."""

from stagetrain.families.family import Family, Layout
from stagetrain.families.registry import family_of
from stagetrain.families.views import UnitGroup, View

__all__ = ["Family", "Layout", "UnitGroup", "View", "family_of"]
