import pytest

from tokenreduce import (
    GridError,
    PlaceholderError,
    ReductionPolicy,
    UnsupportedModelError,
    attach,
    features_of,
    views_of,
)


@pytest.mark.parametrize("family_case", ["internvl"], indirect=True)
def test_features_of_is_for_llava(family_case, pixels):
    with pytest.raises(UnsupportedModelError, match="got InternVLForConditionalGeneration"):
        features_of(family_case.model, pixels)
    with pytest.raises(PlaceholderError, match="pixel_values: expected images"):
        views_of(family_case.model, input_ids=pixels)


@pytest.mark.parametrize("family_case", ["internvl"], indirect=True)
def test_cls_left_in_is_refused_before_the_shuffle(family_case):
    family_case.model.config.vision_feature_select_strategy = "full"
    with pytest.raises(GridError, match="64 tokens of a 8 x 8 grid without CLS"):
        attach(family_case.model, ReductionPolicy(tau=0.1))
