"""The command on image files: plan, calibrate on a dataset, plot, bench."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import vlmpress.cli
from tokenreduce import ReductionPolicy, calibrate, encode_files, open_encoder, plan
from tokenreduce.cli import USER_ERRORS, app

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = vlmpress.cli.run(app, USER_ERRORS, [str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def photos(tmp_path):
    """Six files from flat to noisy, of two sizes."""
    random = np.random.default_rng(0)
    paths = []
    for index in range(6):
        height, width = ((40, 30), (30, 40))[index % 2]
        pixels = 128 + 20 * index * random.uniform(-1, 1, (height, width, 3)) + np.arange(width)[:, None]
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


@pytest.fixture
def tower(tmp_path):
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, patch_size=8, image_size=32
    )
    CLIPVisionModel(config).save_pretrained(tmp_path / "tower")
    return tmp_path / "tower"


@pytest.fixture
def processor():
    """For the tiny Llava of conftest: its image token is number 3."""
    words = ["<pad>", "<s>", "</s>", "<image>", "<unk>", "what", "is", "it", "?"]
    vocabulary = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.mark.parametrize("encoder", ["patches:4:keep", "tower"])
def test_plan_of_images(run, photos, tower, encoder):
    name = str(tower) if encoder == "tower" else encoder
    code, out, _ = run("plan", "--encoder", name, *photos, "--tau", 0.5, "--json")
    assert code == 0
    grids = [views[0].features for views in encode_files(open_encoder(name), photos)]
    plans, mean = plan(grids, ReductionPolicy(tau=0.5))
    answer = json.loads(out)
    assert [image["tokens"] for image in answer["images"]] == [image.num_tokens for image in plans]
    assert answer["mean_tokens"] == mean
    code, out, _ = run("plan", "--encoder", name, *photos, "--tau", 0.5)
    assert out.startswith(f"{photos[0]}: factor ")


def test_calibrate_on_the_training_images_of_a_dataset(run, photos, tmp_path):
    records = [
        {"image": photo.name, "question": "what ?", "answer": "it", "split": "train" if index < 5 else "test"}
        for index, photo in enumerate([photos[0], *photos])
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    arguments = ("calibrate", "--encoder", "patches:4:keep", "--data", tmp_path / "data.jsonl", "--mean-tokens", 200)
    code, out, _ = run(*arguments, "--images", tmp_path, "--json")
    assert code == 0
    grids = [views[0].features for views in encode_files(open_encoder("patches:4:keep"), photos[:4])]
    expected = calibrate([[grid] for grid in grids], 200)
    assert json.loads(out)["tau"] == expected.tau
    assert json.loads(out)["num_images"] == 4
    code, out, _ = run(*arguments, "--num-images", 2, "--json")
    assert json.loads(out)["num_images"] == 2
    code, _, err = run(*arguments, photos[0])
    assert (code, err.count("\n")) == (2, 1)


def test_plot_of_images_and_of_features(run, photos, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, _ = run("plot", "--encoder", "patches:4", *photos, "--out", tmp_path / "a.png")
    assert (code, out) == (0, f"{tmp_path / 'a.png'}: 6 images\n")
    assert Image.open(tmp_path / "a.png").width > 900
    grids = [views[0].features for views in encode_files(open_encoder("patches:4"), photos)]
    save_file({"features": torch.stack(grids)}, tmp_path / "f.safetensors")
    code, _, _ = run("plot", "--features", tmp_path / "f.safetensors", *photos, "--out", tmp_path / "b.png")
    assert code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    code, _, _ = run("plot", "--features", tmp_path / "f.safetensors", "--tau", 0.1, "--out", tmp_path / "c.svg")
    assert code == 0
    code, _, _ = run("plot", "--encoder", "patches:4", *photos, "--mode", "residual", "--out", tmp_path / "d.png")
    assert code == 0
    assert "<svg" in (tmp_path / "c.svg").read_text(encoding="utf-8")


def test_bad_images_and_options_exit_2_and_leave_nothing(run, photos, tmp_path, tower):
    (tmp_path / "broken.png").write_bytes(photos[5].read_bytes()[:200])
    save_file({"features": torch.rand(2, 4, 4, 3)}, tmp_path / "f.safetensors")
    out = tmp_path / "new.png"
    for arguments in (
        ["plan", "--tau", "1", "--encoder", "patches:4", photos[0], tmp_path / "broken.png"],
        ["plan", "--tau", "1", "--encoder", "patches:4", tmp_path / "missing.png"],
        ["plan", "--tau", "1", "--encoder", "patches:4"],
        ["plan", "--tau", "1", "--encoder", tmp_path, photos[0]],
        ["plan", "--tau", "1", "--encoder", tower, "--layer", "9", photos[0]],
        ["calibrate", "--mean-tokens", "9", "--encoder", "patches:4", tmp_path / "broken.png"],
        ["plot", "--encoder", "patches:4", photos[0], tmp_path / "broken.png", "--out", out],
        ["plot", "--encoder", "patches:4", photos[0], "--out", tmp_path / "new.gif"],
        ["plot", "--encoder", "patches:4", photos[0], "--out", out, "--tau", "0"],
        ["plot", "--encoder", "patches:4", photos[0], "--out", out, "--mode", "both"],
        ["plot", "--encoder", "patches:4", photos[0], "--out", out, "--normalize", "both"],
        ["plot", "--features", tmp_path / "f.safetensors", photos[0], "--out", out],
        ["bench"],
        ["bench", "--preset", "huge"],
        ["bench", "--preset", "tiny", photos[0]],
        ["bench", "--encoder", "patches:4", photos[0]],
        ["bench", "--encoder", tower],
        ["bench", "--model", tower, photos[0]],
        ["bench", "--preset", "tiny", "--policy", tmp_path],
    ):
        before = sorted(tmp_path.rglob("*"))
        code, shown, err = run(*arguments)
        assert (code, shown) == (2, ""), arguments
        assert err.startswith("error: "), arguments
        assert "unexpected" not in err, (arguments, err)
        assert err.count("\n") == 1, arguments
        assert sorted(tmp_path.rglob("*")) == before, arguments


@pytest.mark.parametrize("source", ["preset", "tower"])
def test_bench_of_an_encoder(run, photos, tower, source):
    arguments = ["--preset", "tiny", "--batch-size", 2] if source == "preset" else ["--encoder", tower, *photos[:2]]
    code, out, _ = run("bench", *arguments, "--repeats", 1, "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["num_views"] == 2
    assert answer["grid"] == ([8, 8, 64] if source == "preset" else [4, 4, 16])
    for mode in ("residual", "literal"):
        assert answer[mode]["share_of_encoder"] == answer[mode]["dfmr_ms"] / answer["encoder_ms"] > 0
    assert "DFMR, residual: " in run("bench", *arguments, "--repeats", 1)[1]


def test_bench_of_a_model_times_every_reducer(run, photos, tmp_path, build_llava, processor):
    directory = tmp_path / "llava"
    build_llava().save_pretrained(directory)
    processor.save_pretrained(directory)
    code, out, err = run(
        "bench", "--model", directory, *photos[:3], "--prompt", "what is it ?", "--repeats", 1, "--json"
    )
    assert code == 0, err
    rows = json.loads(out)["rows"]
    tokens = {row["reducer"]: row["visual_tokens"] for row in rows}
    assert list(tokens)[:4] == ["full", "dfmr", "pooling by 2", "pooling by 3"]
    assert (tokens["full"], tokens["pooling by 2"], tokens["pooling by 3"]) == (64, 16, 9)
    assert 9 <= tokens["dfmr"] <= 64
    rivals = {name: count for name, count in tokens.items() if " to " in name}
    assert len(rivals) == 3
    assert all(count == float(name.rpartition(" ")[2]) for name, count in rivals.items())
    assert all(row["prefill_ms"] > 0 for row in rows)
