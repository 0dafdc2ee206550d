"""Where visual tokens are, against what the models make of the same inputs."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stagetrain import attach
from stagetrain.errors import PoolingUnsupportedError
from stagetrain.families import View, family_of
from stagetrain.families.edgevlm import EdgeVlmFamily
from stagetrain.families.llava_onevision import LlavaOnevisionFamily
from stagetrain.families.views import place_views, unit_numbers


def test_views_lie_where_a_walk_over_the_placeholders_finds_them() -> None:
    visual = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]]).bool()
    # Three in the first row: 1 x 3; 2 x 1 with two newlines and one more; a class token and 2 x 3 in the second.
    views = [
        View(rows=1, columns=3),
        View(rows=2, columns=1, num_row_end=1, num_end=1),
        View(rows=2, columns=3, num_start=1),
    ]
    groups = place_views(visual, views)
    assert [group.sides for group in groups] == [(1, 3), (2, 1), (2, 3)]
    assert [group.rows.tolist() for group in groups] == [[0], [0], [1]]
    assert [group.columns.tolist() for group in groups] == [[[1, 2, 3]], [[5, 7]], [[1, 2, 3, 4, 5, 6]]]
    numbers = unit_numbers(groups, visual)
    assert numbers.tolist() == [[-1, 0, 0, 0, -1, 1, -1, 1, -1, -1], [-1, 2, 2, 2, 2, 2, 2, -1, -1, -1]]


def test_placeholders_that_are_not_those_of_the_views_are_refused() -> None:
    visual = torch.tensor([[0, 1, 1], [1, 1, 0]]).bool()
    with pytest.raises(PoolingUnsupportedError, match="expected 6 placeholders for 1 grids of visual tokens, got 4"):
        place_views(visual, [View(rows=2, columns=3)])
    with pytest.raises(PoolingUnsupportedError, match="expected every image in one row"):
        place_views(visual, [View(rows=1, columns=3), View(rows=1, columns=1)])


def test_units_are_the_images_tiles_and_frames(cases: dict[str, Any]) -> None:
    expected = {
        "llava": {(3, 3): 3},
        "internvl": {(2, 2): 4},
        # A cut image, two that are not for there are two of them, three frames.
        "onevision": {(4, 4): 3, (6, 12): 1, (2, 2): 3},
        "qwen2_vl": {(4, 2): 2, (2, 3): 1, (2, 2): 3},
        "qwen2_5_vl": {(4, 2): 2, (2, 3): 1, (2, 2): 3},
    }
    for name, case in cases.items():
        model, batch = case.model(1), case.batch()
        groups = family_of(model).layout(model, batch).groups
        assert {group.sides: len(group.rows) for group in groups} == expected[name]


@pytest.mark.parametrize("size", [(30, 30), (37, 70), (70, 37), (64, 64), (10, 200), (200, 10), (5, 900), (63, 95)])
def test_anyres_views_are_those_the_model_packs(cases: dict[str, Any], size: tuple[int, int]) -> None:
    model = cases["onevision"].model(1)
    family = LlavaOnevisionFamily()
    pixels = torch.randn(1, 7, 3, 32, 32)
    arguments = {"pixel_values": pixels, "image_sizes": torch.tensor([size])}
    with torch.no_grad():
        encoded = model.model.get_image_features(**arguments)
    views = family.views(model, arguments)[3]
    assert sum(map(len, views)) == len(encoded.pooler_output[0])
    found = family.views(model, {"mm_encoder_outputs": {"image": encoded}})[3]
    assert sum(map(len, found)) == sum(map(len, views))
    # Of an image a hundred times as long as wide the detail view has no token.
    sides = [[(view.rows, view.columns) for view in each if view.rows and view.columns] for each in (found, views)]
    assert sides[0] == sides[1]


def test_features_without_rows_are_refused(cases: dict[str, Any]) -> None:
    model = cases["onevision"].model(1)
    encoded = SimpleNamespace(pooler_output=[torch.randn(40, 32)])
    with pytest.raises(PoolingUnsupportedError, match="rows that end in newlines, got 40 features"):
        LlavaOnevisionFamily().views(model, {"mm_encoder_outputs": {"image": encoded}})


def test_arguments_that_do_not_tell_are_refused(cases: dict[str, Any]) -> None:
    onevision, qwen, llava = (cases[name].model(1) for name in ("onevision", "qwen2_vl", "llava"))
    with pytest.raises(PoolingUnsupportedError, match="image_sizes: expected"):
        family_of(onevision).layout(onevision, {"input_ids": torch.ones(1, 2), "pixel_values": torch.zeros(1)})
    counts = {"image_sizes": [[30, 30]], "batch_num_images": torch.tensor([2])}
    with pytest.raises(PoolingUnsupportedError, match="batch_num_images: expected 1 images"):
        family_of(onevision).layout(
            onevision, {"input_ids": torch.ones(1, 2), "pixel_values": torch.zeros(1), **counts}
        )
    call = {"input_ids": torch.tensor([[5, 3, 3, 6]]), "pixel_values": torch.zeros(1)}
    with pytest.raises(PoolingUnsupportedError, match="image_grid_thw: expected the grids"):
        family_of(qwen).layout(qwen, call)
    positions = torch.tensor([[[0, 1, 3, 4]]]).expand(3, -1, -1)
    with pytest.raises(PoolingUnsupportedError, match="coordinates of one whole image"):
        family_of(qwen).layout(qwen, {**call, "position_ids": positions})
    with pytest.raises(PoolingUnsupportedError, match="expected images of 3 x 3 visual tokens, got 8 features"):
        encoded = SimpleNamespace(pooler_output=torch.zeros(1, 8, 32))
        family_of(llava).layout(llava, {"input_ids": torch.ones(1, 2), "mm_encoder_outputs": {"image": encoded}})
    with pytest.raises(PoolingUnsupportedError, match="input_ids"):
        family_of(llava).layout(llava, {})


def edge(compressor: str, tower: str = "clip_vision_model") -> Any:
    config = SimpleNamespace(
        image_token_id=3,
        compressor=compressor,
        num_compressed_tokens=9 if compressor == "none" else 4,
        vision_config=SimpleNamespace(model_type=tower),
    )
    return SimpleNamespace(config=config)


def test_edge_models_are_known_by_their_configuration() -> None:
    family, pixels = EdgeVlmFamily(), torch.zeros(2, 3, 8, 8)
    assert family.views(edge("mlp"), {"pixel_values": pixels})[3] == [View(rows=2, columns=2)] * 2
    assert family.views(edge("none"), {"pixel_values": pixels})[3] == [View(rows=3, columns=3)] * 2
    encoded = SimpleNamespace(pooler_output=[torch.zeros(4, 8), torch.zeros(5, 8)], valid=None)
    found = family.views(edge("none"), {"mm_encoder_outputs": {"image": encoded}})[3]
    assert found == [View(rows=2, columns=2), View(rows=1, columns=5)]
    assert family.views(edge("mlp"), {})[3] == []


def test_padding_of_naflex_images_is_no_visual_token() -> None:
    family, mask = EdgeVlmFamily(), torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    call = {"pixel_values": torch.zeros(2, 9, 12), "pixel_attention_mask": mask}
    expected = [View(rows=1, columns=9), View(rows=1, columns=6, num_end=3)]
    assert family.views(edge("none", "siglip2_vision_model"), call)[3] == expected


def test_other_models_are_refused(cases: dict[str, Any]) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    with pytest.raises(PoolingUnsupportedError, match="got LlamaForCausalLM"):
        attach(LlamaForCausalLM(LlamaConfig(vocab_size=8, pad_token_id=0, **sizes)))
    model = cases["onevision"].model(2)
    model.model.language_model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(PoolingUnsupportedError, match="full attention layers"):
        attach(model)
    model = cases["llava"].model(1)
    model.config.vision_config.model_type = "pixtral"
    with pytest.raises(PoolingUnsupportedError, match="got pixtral"):
        attach(model)
