"""Images to features: patches, bare towers, whole models, and every refusal."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tokenreduce import EncoderError, ExtraMissingError, ImageError, features_of
from tokenreduce.encoders.images import open_image
from tokenreduce.encoders.opening import encode_files, open_encoder

Image = pytest.importorskip("PIL.Image")

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture
def photos(tmp_path):
    """Three files, 50 x 30, 30 x 50 and 64 x 64 pixels, from flat to noisy."""
    random = np.random.default_rng(0)
    paths = []
    for index, (width, height) in enumerate([(50, 30), (30, 50), (64, 64)]):
        pixels = 128 + 60 * index * random.uniform(-1, 1, (height, width, 3))
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


def features(encoder, paths):
    views = list(encode_files(encoder, paths))
    assert all(len(grids) == 1 for grids in views)
    return [grids[0].features for grids in views]


def test_patches_are_the_pixels_themselves(photos):
    (grid,) = features(open_encoder("patches:8:64"), photos[2:])
    pixels = np.asarray(Image.open(photos[2])).astype(np.float32) / 255
    assert grid.shape == (8, 8, 192)
    for row, column in ((0, 0), (3, 5), (7, 7)):
        patch = pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert torch.equal(grid[row, column], torch.from_numpy(patch.reshape(-1)))


def test_patches_of_a_square_and_of_the_whole_image(photos):
    assert [grid.shape for grid in features(open_encoder("patches:14"), photos)] == [(24, 24, 588)] * 3
    shapes = [tuple(grid.shape[:2]) for grid in features(open_encoder("patches:4:keep"), photos)]
    assert shapes == [(19, 30), (31, 18), (24, 24)]
    assert all(height * width <= 576 for height, width in shapes)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
def test_patches_of_extreme_aspects_stay_within_the_limit(size):
    ((view,),) = open_encoder("patches:2:keep").encode([Image.new("RGB", size)])
    height, width = view.features.shape[:2]
    assert 1 <= height * width <= 576


@pytest.mark.parametrize(
    "name",
    [
        "patches:",
        "patches:x",
        "patches:0",
        "patches:14:100",
        "patches:14:-28",
        "patches:4:all",
        "patches:" + "9" * 5000,
    ],
)
def test_bad_patch_names_are_refused(name):
    with pytest.raises(EncoderError, match="expected") as caught:
        open_encoder(name)
    assert "\n" not in str(caught.value)


def test_a_clip_tower_gives_its_hidden_state_without_cls(photos, tmp_path):
    torch.manual_seed(0)
    config = CLIPVisionConfig(**SIZES, patch_size=8, image_size=32)
    tower = CLIPVisionModel(config).eval()
    tower.save_pretrained(tmp_path / "tower")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor([open_image(path) for path in photos], return_tensors="pt").pixel_values
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
    for layer in (None, -1, 0):
        expected = states[-2 if layer is None else layer][:, 1:].unflatten(1, (4, 4))
        found = torch.stack(features(open_encoder(str(tmp_path / "tower"), layer), photos))
        assert torch.allclose(found, expected, atol=1e-6)
    for layer in (4, -5):
        with pytest.raises(EncoderError, match="layer: expected -4 to 3"):
            open_encoder(str(tmp_path / "tower"), layer)


def test_a_whole_clip_gives_its_vision_side(photos, tmp_path):
    torch.manual_seed(0)
    vision = dict(SIZES, patch_size=8, image_size=32)
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=SIZES | {"vocab_size": 20})).eval()
    model.save_pretrained(tmp_path / "clip")
    CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(tmp_path / "clip")
    found = features(open_encoder(str(tmp_path / "clip")), photos)
    assert [grid.shape for grid in found] == [(4, 4, 16)] * 3


def test_siglip_has_no_cls_to_drop(photos, tmp_path):
    SiglipVisionModel(SiglipVisionConfig(**SIZES, patch_size=8, image_size=32)).save_pretrained(tmp_path / "tower")
    assert features(open_encoder(str(tmp_path / "tower")), photos)[0].shape == (4, 4, 16)


def test_siglip2_grids_keep_their_aspect_and_lose_their_padding(photos, tmp_path):
    torch.manual_seed(0)
    config = Siglip2VisionConfig(**SIZES, patch_size=4, num_patches=36)
    Siglip2VisionModel(config).save_pretrained(tmp_path / "tower")
    encoder = open_encoder(str(tmp_path / "tower"))
    together = features(encoder, photos)
    height, width, _ = together[0].shape
    assert width > height
    assert together[1].shape[:2] == (width, height)
    assert all(grid.shape[0] * grid.shape[1] <= 36 for grid in together)
    for path, grid in zip(photos, together, strict=True):
        assert torch.allclose(features(encoder, [path])[0], grid, atol=1e-5)


def test_a_llava_gives_what_dfmr_would_see_in_it(photos, tmp_path, llama):
    processor = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    llama.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    pixels = processor([open_image(path) for path in photos], return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = features_of(llama, pixels)
    found = torch.stack(features(open_encoder(str(tmp_path / "llava")), photos))
    assert torch.allclose(found, expected, atol=1e-5)
    with pytest.raises(EncoderError, match="layer: expected none"):
        open_encoder(str(tmp_path / "llava"), -2)


def test_directories_that_are_no_encoder_are_refused(tmp_path, llama):
    def refused(name, match):
        with pytest.raises(EncoderError, match=match) as caught:
            open_encoder(str(tmp_path / name))
        assert "\n" not in str(caught.value)

    refused("missing", "config.json")
    for name, text in (("text", "no json"), ("list", "[]"), ("bert", json.dumps({"model_type": "bert"}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text, encoding="utf-8")
        refused(name, "expected")
    CLIPVisionModel(CLIPVisionConfig(**SIZES, patch_size=8, image_size=32)).save_pretrained(tmp_path / "tower")
    shutil.copytree(tmp_path / "tower", tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").unlink()
    refused("empty", "expected the directory of a vision model")
    shutil.copytree(tmp_path / "tower", tmp_path / "cut")
    data = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused("cut", "expected the directory of a vision model")
    shutil.copytree(tmp_path / "tower", tmp_path / "deeper")
    config = json.loads((tmp_path / "deeper" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}), encoding="utf-8")
    refused("deeper", "expected all weights")
    llama.save_pretrained(tmp_path / "no_processor")
    refused("no_processor", "image processor")


def test_images_that_are_broken_are_named(photos, tmp_path):
    whole = photos[2].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    (tmp_path / "none.png").write_bytes(b"")
    flipped = bytearray(whole)
    flipped[60] ^= 255
    (tmp_path / "flipped.png").write_bytes(flipped)
    for name in ("cut", "text", "none", "flipped"):
        with pytest.raises(ImageError, match=rf"{name}.png: expected") as caught:
            open_image(tmp_path / f"{name}.png")
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="at most 100 pixels, got 64 x 64"):
        open_image(photos[2], max_pixels=100)
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "missing.png")


def test_images_of_other_modes_become_rgb(tmp_path):
    for mode, color in (("L", 7), ("RGBA", (1, 2, 3, 0)), ("P", 3), ("1", 1), ("CMYK", (9, 9, 9, 9)), ("I;16", 60000)):
        path = tmp_path / f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (6, 4), color).save(path)
        image = open_image(path)
        assert (image.mode, image.size) == ("RGB", (6, 4))


def test_without_pillow_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for use in (lambda: open_encoder("patches:4"), lambda: open_image(tmp_path / "missing.png")):
        with pytest.raises(ExtraMissingError, match=r"vlmpress-tokenreduce\[images\]"):
            use()
