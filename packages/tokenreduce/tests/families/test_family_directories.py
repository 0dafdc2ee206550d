"""Directories of every family as encoders: image files in, the views that a reducer would see out."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    Qwen2VLImageProcessorPil,
)

import vlmpress.cli
from tokenreduce import encode_files, open_encoder, views_of
from tokenreduce.cli import USER_ERRORS, app
from tokenreduce.encoders.images import open_image

Image = pytest.importorskip("PIL.Image")

SIDE = {"height": 32, "width": 32}
PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96]]
QWEN = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
PROCESSORS = {
    "llava": lambda: CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False),
    "llava_next": lambda: LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SIDE, image_grid_pinpoints=PINPOINTS
    ),
    "llava_onevision": lambda: LlavaOnevisionImageProcessorPil(size=SIDE, image_grid_pinpoints=PINPOINTS),
    "internvl": lambda: GotOcr2ImageProcessorPil(size=SIDE, crop_to_patches=True, min_patches=1, max_patches=4),
    "qwen2_vl": lambda: Qwen2VLImageProcessorPil(**QWEN, size={"shortest_edge": 256, "longest_edge": 4096}),
    "qwen2_5_vl": lambda: Qwen2VLImageProcessorPil(**QWEN, size={"shortest_edge": 256, "longest_edge": 4096}),
}


@pytest.fixture
def photos(tmp_path):
    """A wide, a tall and a square file."""
    random = np.random.default_rng(0)
    paths = []
    for index, (height, width) in enumerate([(30, 62), (50, 20), (60, 60)]):
        pixels = 128 + 60 * index * random.uniform(-1, 1, (height, width, 3))
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


@pytest.mark.parametrize("family_case", PROCESSORS, indirect=True)
def test_a_directory_gives_the_views_a_reducer_would_see(family_case, photos, tmp_path, capsys):
    directory, processor = tmp_path / "model", PROCESSORS[family_case.name]()
    family_case.model.save_pretrained(directory)
    processor.save_pretrained(directory)
    found = list(encode_files(open_encoder(str(directory)), photos))
    with torch.no_grad():
        expected = [
            views_of(family_case.model, **processor([open_image(path)], return_tensors="pt")) for path in photos
        ]
    for views, others in zip(found, expected, strict=True):
        assert len(views) == len(others)
        for view, other in zip(views, others, strict=True):
            assert torch.allclose(view.features, other.features, atol=1e-5)
            assert view.num_row_tokens == other.num_row_tokens
    arguments = ["plan", "--encoder", directory, *photos, "--tau", "1e-9", "--json"]
    assert vlmpress.cli.run(app, USER_ERRORS, list(map(str, arguments))) == 0
    answer = json.loads(capsys.readouterr().out)
    # Noise and a tau that allows nothing: every view keeps what the model itself would give it, newlines included.
    flat = [view for views in expected for view in views]
    busy = [index for index, view in enumerate(flat) if float(view.features.std(dim=(0, 1)).max()) > 1e-3]
    assert len(answer["images"]) == len(flat)
    assert [answer["images"][index]["tokens"] for index in busy] == [flat[index].num_tokens(1) for index in busy]
