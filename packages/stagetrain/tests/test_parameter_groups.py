import pytest

from stagetrain.errors import ScheduleError
from stagetrain.loop.parameter_groups import check_selectors, group_of, selects

NAMES = {
    "model.vision_tower.encoder.layers.0.mlp.fc1.weight": "vision",
    "model.visual.blocks.0.attn.qkv.weight": "vision",
    "model.visual.merger.mlp.0.weight": "connectors",
    "model.multi_modal_projector.linear_1.bias": "connectors",
    "model.image_newline": "connectors",
    "model.compressor.expand.weight": "connectors",
    "model.fusion.cross.gate": "connectors",
    "visual_compressor.queries": "connectors",
    "model.language_model.layers.0.self_attn.q_proj.weight": "language",
    "lm_head.weight": "language",
    "model.layers.3.mlp.up_proj.weight": "language",
    "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight": "language",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_group(name: str) -> None:
    assert group_of(name) == NAMES[name]
    assert selects((NAMES[name],), name)
    assert selects(("other.", name[:9]), name)
    assert not selects((), name)


def test_names_that_cover_nothing_are_refused() -> None:
    check_selectors(("vision", "lm_head"), NAMES, "freeze")
    with pytest.raises(ScheduleError, match=r"freeze: expected vision, connectors, language or .*, got 'head'"):
        check_selectors(("head",), NAMES, "freeze")
    with pytest.raises(ScheduleError, match="got 'vision'"):
        check_selectors(("vision",), ["lm_head.weight"], "freeze")
