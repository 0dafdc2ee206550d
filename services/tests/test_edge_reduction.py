"""tokenreduce's DFMR in the place of the edge model's compressor: tensors, edgevlm's engine, and the wire."""

import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    SiglipVisionConfig,
)

from edgevlm import (
    EdgeModelSpec,
    EdgeVlmConfig,
    EdgeVlmForConditionalGeneration,
    EdgeVlmProcessor,
    Engine,
    ModelDirectoryError,
    RequestError,
)
from edgevlm.wire import spec_to_proto
from tokenreduce import ReductionPolicy, UnsupportedModelError, attach, detach
from tokenreduce.reducing import ReducedGrid
from tokenreduce.wire import policy_to_proto
from vlmpress.artifact import Artifact, write_policy
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub
from vlmpress_services.store import LocalStore

FUSIONS = ("none", "cross", "decoder", "combined")
MODES = ("contiguous", "uncompressed")
TOWERS = ("clip", "siglip", "siglip2")
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
POLICY = ReductionPolicy(tau=0.3)
PAD, BOS, IMAGE = 0, 2, 60
NUM_VISUAL = 36
SHAPES = ((6, 6), (4, 5), (3, 7))
PROMPT = "what color is the shape ?"


def vision_config(tower: str) -> Any:
    shared: Any = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    shared |= {"patch_size": 8, "initializer_range": 0.2}
    if tower == "siglip2":
        return Siglip2VisionConfig(**shared, num_patches=NUM_VISUAL, vision_use_head=False)
    return {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[tower](**shared, image_size=48)


def edge_model(fusion: str, tower: str = "clip", mode: str = "contiguous", **changes: Any) -> Any:
    """Random, without a compressor, its gates open; the tower knows no positions, so that plain stays plain."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=3,
    )  # fmt: skip
    settings: Any = {"num_compressed_tokens": NUM_VISUAL, "compressor": "none", "image_token_id": IMAGE}
    settings |= {"vision_config": vision_config(tower), "text_config": text, "fusion": fusion, "position_mode": mode}
    model = EdgeVlmForConditionalGeneration(EdgeVlmConfig(**(settings | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.7)
            if "position_embedding" in name:
                parameter.zero_()
    return model


def images_of(model: Any, num_images: int = 3, *, full: bool = False) -> dict[str, torch.Tensor]:
    """Random images; NaFlex ones of other sides each, unless they all fill the grid."""
    generator = torch.Generator().manual_seed(1)
    if model.config.vision_encoder != "siglip2":
        return {"pixel_values": torch.randn(num_images, 3, 48, 48, generator=generator)}
    shapes = torch.tensor([(6, 6)] * num_images if full else SHAPES[:num_images])
    return {
        "pixel_values": torch.randn(num_images, NUM_VISUAL, 3 * 8 * 8, generator=generator),
        "pixel_attention_mask": (torch.arange(NUM_VISUAL) < shapes.prod(1, keepdim=True)).int(),
        "spatial_shapes": shapes,
    }


def row(*parts: int | list[int]) -> list[int]:
    """A row of tokens; a list of one number stands for that many placeholders."""
    ids = [BOS]
    for part in parts:
        ids += [IMAGE] * part[0] if isinstance(part, list) else [part]
    return ids


def batch(rows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right, and their mask."""
    width = max(map(len, rows))
    ids = torch.tensor([ids + [PAD] * (width - len(ids)) for ids in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def pooled(model: Any, images: dict[str, torch.Tensor], factors: Sequence[int]) -> tuple[Any, list[int]]:
    """Slow reference: each image pooled by its factor with torch's own pooling, as the model takes it encoded."""
    features, valid = model.model.patch_features(*images.values())
    shapes = images["spatial_shapes"].tolist() if "spatial_shapes" in images else [(6, 6)] * len(features)
    tokens, places = [], []
    for image, (height, width), factor in zip(features, shapes, factors, strict=True):
        grid = image[: height * width].view(height, width, -1).permute(2, 0, 1)[None]
        index = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
        small, mean = (F.avg_pool2d(x, factor, ceil_mode=True, count_include_pad=False) for x in (grid, index))
        tokens.append(model.model.multi_modal_projector(small[0].flatten(1).T))
        places.append((mean.flatten() + 1e-3).long())
    return {"image": model.model.image_output(features, valid, tokens, places)}, [len(each) for each in tokens]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_factor_one_changes_nothing(fusion: str, tower: str, mode: str) -> None:
    model = edge_model(fusion, tower, mode)
    inputs = batch([row(5, [36], 7, [36], 8, 9), row([36], 10, 11)]) | images_of(model, full=True)
    expected = model(**inputs).logits
    handle = attach(model, ReductionPolicy(tau=1e-6, factors=(1,)))
    torch.testing.assert_close(model(**inputs).logits, expected, **TOLERANCE)
    assert handle.last_num_visual_tokens == [36, 36, 36]
    detach(model)
    assert torch.equal(model(**inputs).logits, expected)


# The fusion's decoder counts a text token's place by the placeholders before it and takes no masked ones.
@pytest.mark.parametrize("fusion", FUSIONS[:2])
def test_padding_of_naflex_goes_with_its_placeholders(fusion: str) -> None:
    """Unattached, the language model sees a zero for each padded patch; attached, what it sees with those masked."""
    model = edge_model(fusion, "siglip2")
    images = images_of(model)
    inputs = batch([row([36], 7, 8, 9)] * 3) | images
    handle = attach(model, ReductionPolicy(tau=1e-6, factors=(1,)))
    logits = model(**inputs).logits
    assert handle.last_num_visual_tokens == [36, 20, 21]
    detach(model)
    assert not torch.allclose(model(**inputs).logits[1, -3:], logits[1, 21:24], atol=1e-3)
    inputs["attention_mask"][:, 1:37] = images["pixel_attention_mask"]
    masked = model(**inputs).logits[:, -3:]
    for number, count in enumerate(handle.last_num_visual_tokens):
        torch.testing.assert_close(logits[number, count + 1 : count + 4], masked[number], **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_another_factor_for_each_image_of_a_batch(fusion: str, tower: str, mode: str) -> None:
    model = edge_model(fusion, tower, mode)
    images = images_of(model)
    reference, counts = pooled(model, images, (2, 1, 3))
    small = batch([row(5, [counts[0]], 7, [counts[1]], 8, 9), row([counts[2]], 10, 11), row(12, 13, 14)])
    labels = (
        small["input_ids"]
        .masked_fill(small["input_ids"] == IMAGE, -100)
        .masked_fill(small["attention_mask"] == 0, -100)
    )
    expected = model(**small, mm_encoder_outputs=reference, labels=labels)
    handle = attach(model, POLICY)
    full = batch([row(5, [36], 7, [36], 8, 9), row([36], 10, 11), row(12, 13, 14)])
    full_labels = (
        full["input_ids"].masked_fill(full["input_ids"] == IMAGE, -100).masked_fill(full["attention_mask"] == 0, -100)
    )
    output = model(**full, **images, labels=full_labels, image_factors=[2, 1, 3])
    assert handle.last_num_visual_tokens == counts
    seen = small["attention_mask"].bool()
    torch.testing.assert_close(output.logits[seen], expected.logits[seen], **TOLERANCE)
    torch.testing.assert_close(output.loss, expected.loss, **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_packed_questions_equal_single_ones(fusion: str, mode: str) -> None:
    model = edge_model(fusion, "siglip2", mode).train()
    images = images_of(model, 2)
    attach(model, POLICY)
    prefix, questions = row([36], 5, [36]), ([7, 8, 9, 10], [11, 12])
    ids = torch.tensor([prefix + questions[0] + questions[1]])
    start = len(prefix)
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    mask[start + 4 :, start : start + 4] = False
    inputs = {
        "input_ids": ids,
        "attention_mask": mask[None, None],
        "position_ids": torch.tensor([[*range(start + 4), start, start + 1]]),
    }
    options = {"image_factors": [2, 3], **images}
    logits = model(**inputs, **options).logits
    for question, part in zip(questions, (slice(-6, -2), slice(-2, None)), strict=True):
        alone = model(input_ids=torch.tensor([prefix + question]), use_cache=False, **options).logits
        torch.testing.assert_close(logits[:, part], alone[:, -len(question) :], **TOLERANCE)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_generate_with_a_cache_equals_without(fusion: str, mode: str, beams: int) -> None:
    model = edge_model(fusion, "siglip2", mode)
    images = images_of(model)
    attach(model, POLICY)
    rows = (row(5, [36], 7, [36], 8), row([36], 10, 11))
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(ids)) + ids for ids in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long(), "image_factors": [3, 1, 2], **images}
    settings: Any = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams, "do_sample": False}
    settings["suppress_tokens"] = [IMAGE]
    cached = model.generate(**inputs, **settings)
    assert torch.equal(model.generate(**inputs, **settings, use_cache=False), cached)
    assert torch.equal(cached[:, :width], ids)
    first = {name: value[:2] for name, value in images.items()}
    alone = model.generate(torch.tensor([rows[0]]), image_factors=[3, 1], **first, **settings)
    assert torch.equal(alone[0, -6:], cached[0, -6:])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_flow(fusion: str) -> None:
    model = edge_model(fusion, "siglip2").train()
    attach(model, POLICY)
    inputs = batch([row([36], 7, 8, 9, 10)] * 2) | images_of(model, 2)
    model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)).loss.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [name for name in dead if "vision_tower.embeddings.position" not in name], dead


def test_a_limit_holds_for_each_row() -> None:
    model = edge_model("combined", "siglip2")
    handle = attach(model, ReductionPolicy(tau=1e-6))
    inputs = batch([row([36], 7, [36], 8), row([36], 10)]) | images_of(model)
    model(**inputs)
    assert handle.last_num_visual_tokens == [36, 20, 21]
    model(**inputs, max_visual_tokens=20)
    first, second, third = handle.last_num_visual_tokens
    assert first + second <= 20
    assert third <= 20
    model(**inputs)
    assert handle.last_num_visual_tokens == [36, 20, 21]


class Watched:
    """A reducer that keeps each view's most watched positions, 5 of them, and remembers what it saw."""

    needs_attention = True
    pixel_factor = 1

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def reduce(self, grids: Sequence[Any], *, rows: Sequence[int], max_tokens: int | None = None) -> list[ReducedGrid]:
        """See `tokenreduce.reducing.Reducer`."""
        self.seen = [grid.attention for grid in grids]
        kept = [grid.attention.flatten().topk(5).indices.sort().values for grid in grids]
        return [
            ReducedGrid(
                tokens=grid.features.flatten(0, 1)[places],
                places=torch.stack((places // grid.features.shape[1], places % grid.features.shape[1]), dim=1).float(),
            )
            for grid, places in zip(grids, kept, strict=True)
        ]


@pytest.mark.parametrize("tower", TOWERS)
def test_a_selection_by_attention(tower: str) -> None:
    model = edge_model("combined", tower, "uncompressed")
    images = images_of(model)
    reducer = Watched()
    handle = attach(model, reducer)
    inputs = batch([row(5, [36], 7, [36], 8, 9), row([36], 10, 11)])
    logits = model(**inputs, **images).logits
    assert handle.last_num_visual_tokens == [5, 5, 5]
    detach(model)
    features, valid = model.model.patch_features(*images.values())
    shapes = images["spatial_shapes"].tolist() if tower == "siglip2" else [(6, 6)] * 3
    kept = []
    model.model.vision_tower.set_attn_implementation("eager")
    watched = model.model.vision_tower(**images, output_attentions=True).attentions[-1].mean(dim=1)
    for image, (height, width) in enumerate(shapes):
        count = height * width
        expected = watched[image, 0, 1:] if tower == "clip" else watched[image, :count, :count].mean(dim=0)
        torch.testing.assert_close(reducer.seen[image], expected.view(height, width), **TOLERANCE)
        kept.append(expected.topk(5).indices.sort().values)
    tokens = [model.model.multi_modal_projector(x[places]) for x, places in zip(features, kept, strict=True)]
    output = model.model.image_output(features, valid, tokens, kept)
    small = batch([row(5, [5], 7, [5], 8, 9), row([5], 10, 11)])
    expected_logits = model(**small, mm_encoder_outputs={"image": output}).logits
    seen = small["attention_mask"].bool()
    torch.testing.assert_close(logits[seen], expected_logits[seen], **TOLERANCE)


def test_a_compressor_must_make_room() -> None:
    model = edge_model("cross", compressor="mlp", num_compressed_tokens=9)
    with pytest.raises(UnsupportedModelError, match="build the model with compressor='none'"):
        attach(model, POLICY)


def picture(*, busy: bool, size: tuple[int, int] = (96, 64)) -> bytes:
    pixels = np.full((size[1], size[0], 3), 120, np.uint8)
    if busy:
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def edge_directory(tiny_llava_directory: Path, tmp_path_factory: Any) -> Callable[..., Path]:
    """Model directories for every fusion and tower, each made once, with a policy beside the weights or without."""
    made: dict[tuple[Any, ...], Path] = {}

    def get(fusion: str, tower: str = "clip", policy: ReductionPolicy | None = POLICY, **changes: Any) -> Path:
        key = (fusion, tower, policy, *changes.items())
        if key not in made:
            tokenizer = AutoTokenizer.from_pretrained(tiny_llava_directory)
            pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
            size = {"height": 48, "width": 48}
            image_processor = (
                Siglip2ImageProcessorPil(patch_size=8, max_num_patches=NUM_VISUAL, **pixels)
                if tower == "siglip2"
                else CLIPImageProcessorPil(size=size, crop_size=size, **pixels)
            )
            changes = {"image_token_id": tokenizer.convert_tokens_to_ids("<image>"), **changes}
            model = edge_model(fusion, tower, **changes)
            processor = EdgeVlmProcessor(image_processor, tokenizer, model.config.num_compressed_tokens)
            folder = made[key] = tmp_path_factory.mktemp("edge")
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            if policy is not None:
                write_policy(folder, policy_to_proto(policy))
        return made[key]

    return get


def num_seen(engine: Engine, image: bytes, limit: int | None = None) -> int:
    return int(list(engine.generate(image, PROMPT, 3, limit))[-1].num_visual_tokens)  # type: ignore[union-attr]


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_plain_image_gets_fewer_tokens(edge_directory: Any, fusion: str, tower: str) -> None:
    engine = Engine.load(edge_directory(fusion, tower))
    busy, plain = num_seen(engine, picture(busy=True)), num_seen(engine, picture(busy=False))
    # 96 x 64 pixels are 7 x 5 patches of at most 36 for NaFlex; the others see a square.
    assert (busy, plain) == ((35, 6) if tower == "siglip2" else (36, 4))
    least = plain
    assert [num_seen(engine, picture(busy=True), limit) for limit in (100, busy, 20, least)] == [
        busy, busy, 12 if tower == "siglip2" else 9, least,
    ]  # fmt: skip
    with pytest.raises(RequestError, match=f"max_visual_tokens={least - 1}: "):
        num_seen(engine, picture(busy=True), least - 1)
    assert num_seen(engine, picture(busy=True)) == busy


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_engine_answers_as_generate(edge_directory: Any, fusion: str) -> None:
    engine = Engine.load(edge_directory(fusion))
    engine._eos_token_ids = frozenset()
    for limit in (None, 9):
        ids = [event.id for event in engine.generate(picture(busy=True), PROMPT, 6, limit) if hasattr(event, "id")]
        inputs = engine.prepare(picture(busy=True), PROMPT)
        output = engine.model.generate(
            **inputs, max_new_tokens=6, min_new_tokens=6, eos_token_id=-1, max_visual_tokens=limit, do_sample=False
        )
        assert output[0, inputs["input_ids"].shape[1] :].tolist() == ids


def test_a_policy_beside_a_compressor_is_refused(edge_directory: Any) -> None:
    folder = edge_directory("cross", compressor="mlp", num_compressed_tokens=9)
    with pytest.raises(ModelDirectoryError, match="build the model with compressor='none'"):
        Engine.load(folder)


@pytest.fixture
def add_edge(store: LocalStore, edge_directory: Any) -> Callable[..., Artifact]:
    def add(*arguments: Any, **options: Any) -> Artifact:
        source = edge_directory(*arguments, **options)
        config = EdgeVlmConfig.from_pretrained(source)
        with store.draft() as draft:
            shutil.copytree(source, draft.path, dirs_exist_ok=True)
            return draft.commit(spec_to_proto(EdgeModelSpec.of(config)), producer=("test", "0"))

    return add


@pytest.mark.parametrize("fusion", FUSIONS)
async def test_a_budget_for_each_request(serving: Any, add_edge: Any, refusal: Any, fusion: str) -> None:
    digest = add_edge(fusion).digest
    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)

        def ask(image: bytes, limit: int) -> Any:
            return stub.Generate(
                pb.GenerateRequest(model=digest, image=image, prompt=PROMPT, max_new_tokens=2, max_visual_tokens=limit)
            )

        async def seen(image: bytes, limit: int = 0) -> int:
            return [response async for response in ask(image, limit)][-1].finish.num_visual_tokens

        busy, plain = picture(busy=True), picture(busy=False)
        assert [await seen(busy), await seen(plain)] == [36, 4]
        assert [await seen(busy, limit) for limit in (36, 35, 9, 4)] == [36, 9, 9, 4]
        code, text = await refusal(ask(busy, 3).read())
        assert code is grpc.StatusCode.INVALID_ARGUMENT, text
        assert "max_visual_tokens=3" in text
        # The server answers on, and the limit of one request is not the next one's.
        assert [await seen(busy), await seen(b"", 1)] == [36, 0]


async def test_a_budget_without_a_policy(serving: Any, add_edge: Any, refusal: Any) -> None:
    digest = add_edge("none", policy=None).digest
    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)
        fields: Any = {"model": digest, "image": picture(busy=True), "prompt": PROMPT, "max_new_tokens": 1}
        last = [response async for response in stub.Generate(pb.GenerateRequest(**fields, max_visual_tokens=36))][-1]
        assert last.finish.num_visual_tokens == 36
        code, text = await refusal(stub.Generate(pb.GenerateRequest(**fields, max_visual_tokens=35)).read())
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "expected at least 36, which the image needs" in text


async def test_a_policy_beside_a_compressor_is_refused_on_the_wire(serving: Any, add_edge: Any, refusal: Any) -> None:
    digest = add_edge("none", compressor="mlp", num_compressed_tokens=9).digest
    async with serving("edgevlm") as channel:
        code, text = await refusal(EdgeVlmServiceStub(channel).LoadModel(pb.LoadModelRequest(model=digest)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "compressor='none'" in text
