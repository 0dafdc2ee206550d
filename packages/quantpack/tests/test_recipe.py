import json

import pytest

from quantpack import Scheme, SchemeError
from quantpack.methods.awq import Awq
from quantpack.methods.ecm import Ecm
from quantpack.methods.nearest import Nearest
from quantpack.recipe import PartRecipe, Recipe, as_recipe, method_name

VISION = "model.vision_tower.encoder.layers.0.mlp.fc1.weight"
LANGUAGE = "model.language_model.layers.0.mlp.up_proj.weight"


def test_a_scheme_alone_is_round_to_nearest_everywhere() -> None:
    recipe = as_recipe(Scheme(granularity="channel"))
    assert recipe.scheme_of(VISION) == recipe.scheme_of(LANGUAGE) == Scheme(granularity="channel")
    assert recipe.part(VISION) == PartRecipe(scheme=Scheme(granularity="channel"), method=Nearest())
    assert as_recipe(recipe) is recipe


def test_parts_and_single_weights_have_their_own() -> None:
    vision = PartRecipe(scheme=Scheme(symmetric=True), method=Ecm(alpha=0.3))
    recipe = Recipe(parts={"vision": vision}, tensors={LANGUAGE: Scheme(granularity="tensor")}, embeddings="int4")
    assert recipe.part(VISION) is vision
    assert recipe.scheme_of(VISION) == Scheme(symmetric=True)
    assert recipe.scheme_of(LANGUAGE) == Scheme(granularity="tensor")
    assert recipe.part(LANGUAGE) == PartRecipe()
    assert recipe.used_parts == (PartRecipe(), vision)
    fields = json.loads(json.dumps(recipe.as_fields()))
    assert fields["parts"]["vision"]["method"] == "ecm"
    assert fields["parts"]["vision"]["alpha"] == 0.3
    assert fields["default"]["scheme"]["granularity"] == "group"


def test_a_part_may_stay_as_it_is() -> None:
    recipe = Recipe(parts={"vision": None}, tensors={VISION: Scheme()})
    assert recipe.part(VISION) is None
    assert recipe.scheme_of(VISION) is None
    assert recipe.scheme_of(LANGUAGE) == Scheme()
    assert recipe.as_fields()["parts"] == {"vision": None}
    assert Recipe(parts=dict.fromkeys(("vision", "language", "other"))).used_parts == ()


def test_what_needs_calibration() -> None:
    assert not PartRecipe().needs_calibration
    assert not PartRecipe(method=Ecm()).needs_calibration
    assert PartRecipe(method=Ecm(alpha=0.1)).needs_calibration
    assert PartRecipe(method=Awq()).needs_calibration


def test_refuses_what_does_not_exist() -> None:
    with pytest.raises(SchemeError, match="embeddings: expected one of keep, int4"):
        Recipe(embeddings="int8")  # type: ignore[arg-type]
    with pytest.raises(SchemeError, match="parts: expected vision, language, other"):
        Recipe(parts={"audio": PartRecipe()})  # type: ignore[dict-item]
    with pytest.raises(SchemeError, match="method: expected one of"):
        method_name(object())  # type: ignore[arg-type]
