"""Figure 1 and Table 2 of ECM from shapes alone."""

import json
from pathlib import Path

import pytest
from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

from quantpack import SourceError
from quantpack.shapes import METHODS, count_weights, part_shares, saving


@pytest.fixture(scope="module")
def onevision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA-OneVision-0.5B: SigLIP so400m without its last layer and head, and Qwen2-0.5B."""
    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        patch_size=14,
        image_size=384,
        vision_use_head=False,
    )
    text = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=152000,
        tie_word_embeddings=True,
    )
    path = tmp_path_factory.mktemp("onevision") / "config.json"
    config = LlavaOnevisionConfig(vision_config=vision, text_config=text, tie_word_embeddings=True)
    path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return path


def test_counts_are_those_of_the_paper(onevision: Path) -> None:
    counts = count_weights(onevision)
    assert counts["vision"] == pytest.approx(398e6, rel=0.005)
    assert counts["language"] == pytest.approx(494e6, rel=0.005)
    assert count_weights(onevision.parent) == counts


# Table 2, LLaVA-OneVision-0.5B: LLM CR, VE CR, printed saving.
@pytest.mark.parametrize(
    ("language_cr", "vision_cr", "printed"), [(1.10, None, 0.022), (1.10, 1.22, 0.628), (1.23, 1.32, 0.662)]
)
def test_table_2(onevision: Path, language_cr: float, vision_cr: float | None, printed: float) -> None:
    assert saving(count_weights(onevision), language_cr, vision_cr) == pytest.approx(printed, abs=0.01)


def test_figure_1(onevision: Path) -> None:
    shares = {share.part: share for share in part_shares(count_weights(onevision))}
    # Printed: 77% of the memory once the language model is quantized.
    assert shares["vision"].share_int4_language == pytest.approx(0.77, abs=0.01)
    assert sum(share.share_16bit for share in shares.values()) == pytest.approx(1)
    assert sum(share.share_int4_language for share in shares.values()) == pytest.approx(1)


def test_methods_are_the_means_of_table_2() -> None:
    rows = {"AWQ+C": ((1.10, 1.09, 1.07, 1.06), None), "MBQ+C": ((1.10, 1.09, 1.07, 1.07), (1.22, 1.19, 1.21, 1.25))}
    rows["ECM"] = ((1.23, 1.22, 1.30, 1.26), (1.32, 1.33, 1.34, 1.37))
    for method in METHODS:
        language, vision = rows[method.name]
        assert method.language_cr == pytest.approx(sum(language) / 4, abs=0.004)
        assert (method.vision_cr is None) == (vision is None)
        if vision is not None:
            assert method.vision_cr == pytest.approx(sum(vision) / 4, abs=0.004)


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"model_type": "of tomorrow"}'])
def test_what_describes_no_model_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(SourceError, match=r"config\.json"):
        count_weights(tmp_path / "config.json")
    with pytest.raises(SourceError):
        count_weights(tmp_path / "nothing.json")
