"""Compressed models against slow references and against themselves."""

from typing import Any

import pytest
import torch

from stagetrain import CompressionSetting, attach
from stagetrain.families import family_of

BOTH = ["average", "average_2d"]
ALL = ["average", "average_2d", "random", "k_means", "attention", "vcc"]


def windows_of(places: list[int], sides: tuple[int, int], stride: int, compressor: str) -> list[list[int]]:
    """Places of a unit's tokens by window, in a loop over its tokens."""
    if compressor == "average":
        return [places[start : start + stride] for start in range(0, len(places), stride)]
    height, width = {2: (1, 2), 3: (1, 3), 4: (2, 2)}[stride]
    found: dict[tuple[int, int], list[int]] = {}
    for index, place in enumerate(places):
        row, column = divmod(index, sides[1])
        found.setdefault((row // height, column // width), []).append(place)
    return list(found.values())


def embeddings_and_positions(name: str, model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the decoder gets for one row: embeddings [T, D] and positions [3 or 1, T]."""
    ids = batch["input_ids"]
    embeddings = model.get_input_embeddings()(ids)[0].clone()
    if name == "llava":
        if "pixel_values" in batch:
            features = model.model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
            embeddings[ids[0] == 3] = torch.cat(list(features))
        return embeddings, torch.arange(ids.shape[1])[None]
    for kind, token, pixels in (("image", 3, "pixel_values"), ("video", 4, "pixel_values_videos")):
        if pixels in batch:
            encode = getattr(model.model, f"get_{kind}_features")
            embeddings[ids[0] == token] = torch.cat(
                list(encode(batch[pixels], batch[f"{kind}_grid_thw"]).pooler_output)
            )
    grids = {name: batch.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    return embeddings, model.model.get_rope_index(ids, batch["mm_token_type_ids"], **grids)[0][:, 0]


def reference(
    case: Any,
    model: Any,
    batch: dict[str, Any],
    units: list[tuple[tuple[int, int], list[int]]],
    setting: CompressionSetting,
) -> torch.Tensor:
    """Logits [P, V] of one row without padding, layer by layer, every pooled token made by hand."""
    decoder = model.model.language_model
    hidden, positions = embeddings_and_positions(case.name, model, batch)
    windows = [[place] for place in range(len(hidden))]
    for index, block in enumerate(decoder.layers):
        if index == setting.layer:
            inside = {place for _, places in units for place in places}
            windows = [[place] for place in range(len(hidden)) if place not in inside]
            for sides, places in units:
                windows += windows_of(places, sides, setting.stride, setting.compressor)
            windows.sort(key=max)
            hidden = torch.stack([hidden[window].mean(0) for window in windows])
            means = [[sum(component[window].tolist()) // len(window) for window in windows] for component in positions]
            positions = torch.tensor(means)
        table = decoder.rotary_emb(hidden[None], position_ids=positions[:, None] if len(positions) == 3 else positions)
        causal = torch.ones(1, 1, len(windows), len(windows), dtype=torch.bool).tril()
        hidden = block(hidden[None], attention_mask=causal, position_embeddings=table)[0]
    logits: torch.Tensor = model.lm_head(decoder.norm(hidden))
    return logits


@pytest.mark.parametrize("compressor", BOTH)
@pytest.mark.parametrize(("layer", "stride"), [(0, 2), (1, 3), (2, 4)])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_logits_are_those_of_hand_made_pooled_tokens(
    cases: dict[str, Any], name: str, layer: int, stride: int, compressor: str
) -> None:
    case = cases[name]
    model, plain = case.model(), case.model()
    setting = CompressionSetting(layer=layer, stride=stride, compressor=compressor)
    attach(model).set(setting)
    sides = {"llava": {"i": [(3, 3)]}, "qwen2_vl": {"i": [(2, 3)], "I": [(4, 2)], "v": [(2, 2)] * 3}}[name]
    with torch.no_grad():
        logits = model(**case.batch()).logits
        for index, row in enumerate(case.rows):
            units, place = [], 0
            for letter in row:
                for shape in sides.get(letter, []):
                    units.append((shape, list(range(place, place + shape[0] * shape[1]))))
                    place += shape[0] * shape[1]
                place += letter == "t"
            expected = reference(case, plain, case.batch((row,)), units, setting)
            torch.testing.assert_close(logits[index, -len(expected) :], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("compressor", ALL)
@pytest.mark.parametrize("layer", [0, 1])
def test_rows_do_not_know_of_each_other_and_sides_of_padding_are_equal(case: Any, layer: int, compressor: str) -> None:
    model = case.model()
    attach(model).set(CompressionSetting(layer=layer, stride=2, compressor=compressor))
    with torch.no_grad():
        left, right = (model(**case.batch(side=side)).logits for side in ("left", "right"))
        # What was only padding does not keep a batch long.
        assert left.shape[1] == max(model(**case.batch((row,))).logits.shape[1] for row in case.rows)
        for index, row in enumerate(case.rows):
            alone = model(**case.batch((row,))).logits[0]
            padding = right.shape[1] - len(alone)
            torch.testing.assert_close(left[index, padding:], alone, rtol=1e-5, atol=2e-5)
            # Padding on the right goes on the left only as far as it stood in the way.
            found = [
                start
                for start in range(padding + 1)
                if torch.allclose(right[index, start : start + len(alone)], alone, 1e-4, 1e-4)
            ]
            assert len(found) == 1


@pytest.mark.parametrize("layer", [0, 2])
def test_a_text_only_row_has_the_same_loss_alone_and_mixed(case: Any, layer: int) -> None:
    model, text = case.model(), "tttttttt"
    attach(model).set(CompressionSetting(layer=layer, stride=2))
    alone, mixed = case.batch((text,), with_labels=True), case.batch(with_labels=True)
    mixed["labels"][[row for row, letters in enumerate(case.rows) if letters != text]] = -100
    torch.testing.assert_close(model(**mixed).loss, model(**alone).loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("compressor", ["average", "vcc"])
def test_no_label_is_lost_and_each_is_predicted_by_the_token_before_it(case: Any, compressor: str, side: str) -> None:
    model, batch = case.model(), case.batch(side=side, with_labels=True)
    attach(model).set(CompressionSetting(layer=1, stride=2, compressor=compressor))
    seen: list[torch.Tensor] = []

    def loss(logits: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        seen.append(labels)
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    model.loss_function = loss
    output = model(**batch)
    before, after = batch["labels"], seen[0]
    assert after.shape == output.logits.shape[:2]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[old != -100], new[new != -100])
    total = 0.0
    for row in case.rows:
        alone = case.batch((row,), with_labels=True)
        logits, labels = model(**alone).logits[0], alone["labels"][0]
        answers = labels[labels != -100]
        # Answers are the last tokens of a row.
        total += torch.nn.functional.cross_entropy(logits[-len(answers) - 1 : -1], answers, reduction="sum").item()
    assert output.loss.item() == pytest.approx(total / int((before != -100).sum()), rel=1e-4)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(case: Any, layer: int, reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, batch = case.model().train(), case.batch(with_labels=True)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        attach(model).set(CompressionSetting(layer=layer, stride=2, compressor="k_means"))
        model(**batch).loss.backward()
        gradients.append([value.grad for value in model.parameters() if value.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("layer", "compressor"), [(0, "average"), (1, "average_2d"), (0, "vcc"), (1, "attention")])
def test_eager_attention_agrees(case: Any, layer: int, compressor: str) -> None:
    logits = []
    for attention in ("sdpa", "eager"):
        model = case.model(attention=attention)
        attach(model).set(CompressionSetting(layer=layer, stride=2, compressor=compressor))
        with torch.no_grad():
            logits.append(model(**case.batch()).logits[:, -4:])
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("compressor", ["attention", "vcc"])
def test_answers_have_no_say_in_what_is_left_of_an_image(case: Any, compressor: str, layer: int) -> None:
    model, batch = case.model(), case.batch(case.rows[:1], with_labels=True)
    attach(model).set(CompressionSetting(layer=layer, stride=2, compressor=compressor))
    texts = ("input_ids", "attention_mask", "mm_token_type_ids")
    prompt = {name: value[:, :-3] if name in texts else value for name, value in batch.items() if name != "labels"}
    assert (batch["labels"] != -100).sum() == 3
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits[:, :-3], model(**prompt).logits, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_without_a_mask_nothing_changes(case: Any, layer: int) -> None:
    model = case.model()
    attach(model).set(CompressionSetting(layer=layer, stride=2))
    for rows in (("titt",), ("titt", "ttt" + "t" * case.visual("i", True).num_tokens)):
        batch = case.batch(rows)
        with torch.no_grad():
            expected = model(**batch, use_cache=False).logits
            del batch["attention_mask"]
            torch.testing.assert_close(model(**batch, use_cache=False).logits, expected, rtol=1e-5, atol=2e-5)


def test_features_given_in_place_of_pixels_make_no_difference(case: Any) -> None:
    model, batch = case.model(), case.batch()
    attach(model).set(CompressionSetting(layer=1, stride=4, compressor="average_2d"))
    with torch.no_grad():
        expected = model(**batch).logits
        model_call = case.batch()
        positions = {}
        if "qwen" in case.name:
            grids = {name: batch.get(name) for name in ("image_grid_thw", "video_grid_thw")}
            mask, types = batch["attention_mask"], batch["mm_token_type_ids"]
            positions["position_ids"] = model.model.get_rope_index(
                batch["input_ids"], types, **grids, attention_mask=mask
            )[0]
        given = model._prepare_multimodal_encoder_kwargs_for_generation(model_call)
        assert not any(name.startswith("pixel") for name in given)
        torch.testing.assert_close(model(**given, **positions).logits, expected)


def test_random_draws_follow_the_global_state_in_training_and_the_seed_outside(cases: dict[str, Any]) -> None:
    case = cases["llava"]
    model, batch = case.model(), case.batch()
    attachment = attach(model, seed=3)
    attachment.set(CompressionSetting(layer=1, stride=3, compressor="random"))
    with torch.no_grad():
        first, second = model(**batch).logits, model(**batch).logits
        attachment.seed = 5
        other = model(**batch).logits
        model.train()
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(model(**batch).logits)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_learned_compressor_trains_and_has_no_effect_on_text(case: Any) -> None:
    model, batch = case.model(), case.batch(with_labels=True)
    attachment = attach(model)
    text = case.batch(("tttttttt",))
    plain = model(**text).logits
    attachment.set(CompressionSetting(layer=0, stride=2, compressor="q_former"))
    model(**batch).loss.backward()
    assert attachment.module is not None
    assert all(value.grad is not None and value.grad.any() for value in attachment.module.output.parameters())
    assert torch.equal(model(**text).logits, plain)


def test_families_tell_the_largest_unit(cases: dict[str, Any]) -> None:
    most = {name: family_of(case.model(1)).most_tokens(case.model(1)) for name, case in cases.items()}
    assert most == {"llava": 9, "internvl": 4, "onevision": 77, "qwen2_vl": None, "qwen2_5_vl": None}
