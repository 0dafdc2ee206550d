"""What the layers of a model say, on the wire: as the library says it, and bad requests refused."""

import io
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from verbdistill import Verbalizers, save_verbalizers
from verbdistill.seeing.loading import load_model
from verbdistill.seeing.speaking import verbalize
from verbdistill.wire import speeches_from_proto
from vlmpress.artifact import Artifact
from vlmpress.verbdistill.v1 import verbdistill_service_pb2 as pb
from vlmpress.verbdistill.v1.verbdistill_service_pb2_grpc import VerbDistillServiceStub
from vlmpress_services.serving.images import ImagesConfig


@pytest.fixture
def add_verbalizers(store: Any, tmp_path: Path) -> Any:
    import torch

    def add(model: Artifact, seed: int = 0, layers: tuple[int, ...] = (1, 2)) -> Artifact:
        torch.set_num_threads(1)
        made = Verbalizers(load_model(model.path)[0], layers, generator=torch.Generator().manual_seed(seed))
        return store.add(save_verbalizers(made, tmp_path / f"verbalizers-{seed}").path)  # type: ignore[no-any-return]

    return add


async def test_layers_say_what_the_library_says(
    serving: Any, store: Any, add_model: Any, add_verbalizers: Any, png: bytes
) -> None:
    artifact = add_model()
    store.tag("it", artifact.digest)
    model, processor = load_model(artifact.path)
    async with serving("verbdistill") as channel:
        stub = VerbDistillServiceStub(channel)
        for seed in (0, 1):
            kept = add_verbalizers(artifact, seed)
            bodies = Verbalizers(model, (1, 2))
            bodies.load_state_dict(_state(kept))
            for image in (png, b""):
                request = pb.VerbalizeRequest(
                    model="it", verbalizers=kept.digest, image=image, question="is it red ?", max_words=4
                )
                said = speeches_from_proto(await stub.Verbalize(request))
                opened = Image.open(io.BytesIO(image)) if image else None
                expected = verbalize(model.eval(), processor, bodies, opened, "is it red ?", max_words=4)
                assert [each.layer for each in said.layers] == [1, 2]
                assert said.answer.layer is None
                assert [each.text for each in (*said.layers, said.answer)] == [
                    each.text for each in (*expected.layers, expected.answer)
                ]
                words = [each.first_words for each in (*said.layers, said.answer)]
                assert words == [each.first_words for each in (*expected.layers, expected.answer)]
                assert {len(each) for each in words} == {5}


def _state(kept: Artifact) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(kept.path / "verbalizers.safetensors")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model": "none"}, grpc.StatusCode.NOT_FOUND),
        ({"verbalizers": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"verbalizers": "none"}, grpc.StatusCode.NOT_FOUND),
        ({"verbalizers": "it"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model": "bodies"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"question": " "}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"question": "<image> and <image> ?"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"image": b"not an image"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"image": b"\x89PNG\r\n\x1a\n"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"image": b"", "question": "<image> is it ?"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"max_words": 1000}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"num_likeliest": 65}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_bad_requests_are_refused(
    serving: Any,
    store: Any,
    add_model: Any,
    add_verbalizers: Any,
    png: bytes,
    refusal: Any,
    change: dict[str, Any],
    code: grpc.StatusCode,
) -> None:
    model = add_model()
    store.tag("it", model.digest)
    store.tag("bodies", add_verbalizers(model).digest)
    good: dict[str, Any] = {"model": "it", "verbalizers": "bodies", "image": png, "question": "is it red ?"}
    async with serving("verbdistill") as channel:
        stub = VerbDistillServiceStub(channel)
        found, text = await refusal(stub.Verbalize(pb.VerbalizeRequest(**(good | {"max_words": 2} | change))))
        assert found is code, text
        assert str(store.root) not in text
        assert await stub.Verbalize(pb.VerbalizeRequest(**good, max_words=2))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, "expected at most 33554432 pixels together, got 33562624"),
        ({"max_pixels": 1000}, "expected at most 1000 pixels together, got 33562624"),
        ({"max_image_bytes": 100}, "expected at most 100 bytes each, got"),
    ],
)
async def test_an_image_beyond_the_servers_limits_loads_no_model(
    serving: Any, add_model: Any, add_verbalizers: Any, refusal: Any, limits: dict[str, int], expected: str
) -> None:
    model = add_model()
    kept = add_verbalizers(model)
    (model.path / "config.json").write_text("nothing to load")
    buffer = io.BytesIO()
    Image.new("1", (8192, 4097)).save(buffer, "PNG")
    request = pb.VerbalizeRequest(
        model=model.digest, verbalizers=kept.digest, image=buffer.getvalue(), question="is it red ?"
    )
    async with serving("verbdistill", images=ImagesConfig(**limits)) as channel:
        code, text = await refusal(VerbDistillServiceStub(channel).Verbalize(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert expected in text


async def test_verbalizers_of_another_model_are_refused(
    serving: Any, store: Any, add_model: Any, tmp_path: Path, refusal: Any
) -> None:
    import torch

    from vlmpress_services.pipeline.tiny_models import TinyShape, build_llava, build_tower

    model = add_model()
    processor = load_model(model.path)[1]
    shape = TinyShape(image_px=32, hidden_size=48, language_intermediate_size=48, max_positions=256)
    other = build_llava(build_tower(shape, seed=0), processor, shape, num_layers=2, seed=0)
    wide = Verbalizers(other, (1, 2), generator=torch.Generator())
    kept = store.add(save_verbalizers(wide, tmp_path / "wide").path)
    request = pb.VerbalizeRequest(model=model.digest, verbalizers=kept.digest, question="is it red ?")
    async with serving("verbdistill") as channel:
        code, text = await refusal(VerbDistillServiceStub(channel).Verbalize(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "hidden size" in text
    assert str(store.root) not in text
