import torch
from torch import nn

from quantpack.calibration.tokens import mark_tokens, visual_token_ids

LANGUAGE = "model.language_model.layers.0.mlp.up_proj"
VISION = "model.vision_tower.encoder.layers.0.mlp.fc1"
IDS = frozenset({3})


def test_prompt_tokens_follow_ids_and_mask() -> None:
    sample = {
        "input_ids": torch.tensor([[9, 3, 3, 5], [9, 3, 7, 0]]),
        "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
    }
    kept, visual = mark_tokens(sample, LANGUAGE, 8, IDS)
    assert kept.tolist() == [True] * 7 + [False]
    assert visual.tolist() == [False, True, True, False, False, True, False, False]


def test_packed_rows_lose_only_positions_that_see_and_are_seen_by_themselves() -> None:
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    allowed[4, :4] = False
    sample = {"input_ids": torch.full((1, 5), 7), "attention_mask": allowed[None, None]}
    kept, visual = mark_tokens(sample, LANGUAGE, 5, IDS)
    assert kept.tolist() == [True] * 4 + [False]
    assert not visual.any()
    lone = {"input_ids": torch.full((1, 1), 7), "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool)}
    assert mark_tokens(lone, LANGUAGE, 1, IDS)[0].tolist() == [True]


def test_towers_see_visual_tokens_and_their_own_padding() -> None:
    sample = {
        "input_ids": torch.full((1, 4), 7),
        "attention_mask": torch.zeros(1, 4),
        "pixel_attention_mask": torch.tensor([[1, 1, 0, 0]]),
    }
    kept, visual = mark_tokens(sample, VISION, 4, IDS)
    assert kept.tolist() == [True, True, False, False]
    assert visual.all()
    kept, visual = mark_tokens(sample, "model.multi_modal_projector.linear_1", 6, IDS)
    assert kept.all()
    assert visual.all()


def test_placeholders_come_from_the_config() -> None:
    class Config:
        image_token_id, video_token_id, image_token_index = 5, 6, None

    class Model(nn.Module):
        config = Config()

    assert visual_token_ids(Model()) == {5, 6}
    assert visual_token_ids(nn.Linear(1, 1)) == frozenset()
    kept, visual = mark_tokens({"input_ids": torch.tensor([[5, 6]])}, LANGUAGE, 2, frozenset())
    assert kept.all()
    assert not visual.any()
