"""Manifests and messages with changed bytes: a typed error or right data, soon, and in little memory."""

import importlib
import io
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import psutil
import pytest
import torch
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message
from PIL import Image

import edgevlm.wire as edgevlm_wire
import quantpack.wire as quantpack_wire
import stagetrain.wire as stagetrain_wire
import tokenreduce.wire as tokenreduce_wire
import verbdistill.wire as verbdistill_wire
from edgevlm import EdgeModelSpec, GenerationRequest
from quantpack import EcmSearch, QuantizedModel, Recipe, Scheme, standard_settings
from stagetrain import StageCost, named_schedule
from tokenreduce import CalibrationDistribution, ReductionPolicy
from tokenreduce.running_calibration import CalibrationSettings
from vlmpress.artifact import ArtifactError, check_files, from_json_bytes, to_json_bytes
from vlmpress.data import DataError
from vlmpress.job.v1 import job_pb2
from vlmpress_services.errors import PackageError, ServicesError
from vlmpress_services.jobs.work import check_spec
from vlmpress_services.store.local import LocalStore

GOLDEN = Path(__file__).resolve().parents[3] / "protos/tests/golden"
WIRES = (
    "edgevlm.wire",
    "quantpack.wire",
    "stagetrain.wire",
    "tokenreduce.wire",
    "verbdistill.wire",
    "verbdistill.verbalizers.wire",
)
TYPED = (ServicesError, ArtifactError, DataError, PackageError)
MAX_S, MAX_GROWTH_BYTES, WARM_UP = 1.0, 64 << 20, 500
# Readers that give images one by one, however they came together; fields that are a sum of others.
SPLIT, DERIVED = ("budget_request_to_proto",), ("total_tokens",)
NASTY = (
    b"\x00",
    b"\xff",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"{",
    b'"',
    b"\\u0000",
    b"1e999",
    b"-",
    b"[" * 40,
)


def mutated(data: bytes, source: random.Random) -> bytes:
    """One to four changes: a flipped bit, bytes put in, taken out, doubled or swapped, the end cut off."""
    changed = bytearray(data)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(changed) + 1)
        end = min(len(changed), place + source.choice((1, 1, 2, 8, 64)))
        kind = source.randrange(6)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << source.randrange(8)
        elif kind == 1:
            changed[place:place] = source.choice(NASTY)
        elif kind == 2:
            del changed[place:end]
        elif kind == 3:
            changed[place:place] = changed[place:end] * source.choice((1, 2, 100))
        elif kind == 4:
            other = source.randrange(len(changed) + 1)
            changed[place:end] = changed[other : other + end - place]
        else:
            del changed[place if source.random() < 0.1 else len(changed) :]
    return bytes(changed)


def run(one: Callable[[bytes], None], samples: list[bytes], number: int, seed: int) -> None:
    """Puts so many mutations of the samples through a function that must not fail."""
    source, process, base = random.Random(seed), psutil.Process(), 0
    for index in range(number):
        data = mutated(source.choice(samples), source)
        start_s = time.perf_counter()
        try:
            one(data)
        except Exception as error:
            error.add_note(f"mutation {index} of seed {seed}: {data[:2000]!r}")
            raise
        # A pause of the machine is no hang.
        if time.perf_counter() - start_s > MAX_S:
            start_s = time.process_time()
            one(data)
            assert time.process_time() - start_s < MAX_S, data[:2000]
        if index == min(WARM_UP, number // 4):
            base = process.memory_info().rss
    assert process.memory_info().rss - base < MAX_GROWTH_BYTES


def test_manifests(count: Callable[[int, int], int]) -> None:
    samples = [path.read_bytes() for path in sorted(GOLDEN.glob("*/artifacts/*/manifest.json"))]
    known = {to_json_bytes(from_json_bytes(data)) for data in samples}
    num_right = 0

    def one(data: bytes) -> None:
        nonlocal num_right
        try:
            manifest = from_json_bytes(data)
            check_files(manifest)
        except ArtifactError:
            return
        # Another manifest, or the same: its bytes are the only ones that say so.
        assert to_json_bytes(manifest) == data
        num_right += data not in known

    run(one, samples, count(500_000, 3000), seed=0)
    assert num_right > 0, "every mutation was refused: they are too coarse to tell anything"


def readers() -> dict[str, list[Callable[[Any], Any]]]:
    """Everything in the packages that reads one message, by the message's full name."""
    found: dict[str, list[Callable[[Any], Any]]] = {}
    for module in map(importlib.import_module, WIRES):
        for name, function in vars(module).items():
            if not name.endswith("_from_proto") or name.startswith("_") or function.__module__ != module.__name__:
                continue
            kind = next(iter(get_type_hints(function).values()))
            if isinstance(kind, type) and issubclass(kind, Message):
                found.setdefault(kind.DESCRIPTOR.full_name, []).append(function)
    return found


def writer(reader: Any) -> Callable[[Any, Any], Message] | None:
    """Makes a message of what a reader gave for one; None where nothing does."""
    name = reader.__name__.replace("_from_proto", "_to_proto")
    if name == "request_to_proto":
        return lambda value, message: edgevlm_wire.request_to_proto(message.model, value, now_s=0.0)
    if name == "plans_to_proto":
        return lambda value, _: tokenreduce_wire.plans_to_proto(*value)
    write = None if name in SPLIT else reader.__globals__.get(name)
    return None if write is None else lambda value, _: write(value)


def check_right(message: Message, value: Any, read: Callable[[Any], Any], write: Callable[[Any, Any], Message]) -> None:
    """What was read of a message holds all that it says; written once, it is written so ever after."""
    written = write(value, message)
    assert stands_in(message, written), f"read as {written}"
    again = write(read(written), written)
    assert again.SerializeToString(deterministic=True) == written.SerializeToString(deterministic=True)


def stands_in(part: Message, whole: Message) -> bool:
    """Whether a message has every field that another sets, and the same value there."""
    for field, value in part.ListFields():
        if field.name in DERIVED:
            continue
        mine, others = (list(each) if field.is_repeated else [each] for each in (value, getattr(whole, field.name)))
        if len(mine) != len(others):
            return False
        for one, other in zip(mine, others, strict=True):
            if isinstance(one, Message):
                if not stands_in(one, other):
                    return False
            elif repr(one) != repr(other):  # NaN is NaN here
                return False
    return True


def right_messages() -> list[Message]:
    """Messages that are read without an error, for the golden ones hold every field and little sense."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 99, 199)).save(image, "PNG")
    request = GenerationRequest(prompt="is it red ?", max_new_tokens=4, images=(image.getvalue(),))
    schedule = replace(named_schedule("three_stage_deeper", 8), restarts=True)
    totals = QuantizedModel(
        scheme=Scheme(), num_codes=100, code_bytes_packed=50, code_bytes_compressed=30, recipe=Recipe()
    )
    spec = EdgeModelSpec(
        vision_encoder="clip",
        compressor="mlp",
        fusion="none",
        num_visual_tokens=36,
        num_compressed_tokens=9,
    )
    seen = CalibrationDistribution(num_images=3, mean_tokens=2.5, shares=(1.0,), deciles=(tuple(range(11)),))
    job = job_pb2.PackJob(model="tiny", scheme=quantpack_wire.scheme_to_proto(Scheme()))
    return [
        quantpack_wire.scheme_to_proto(Scheme(granularity="agq")),
        quantpack_wire.recipe_to_proto(Recipe()),
        quantpack_wire.quantized_model_to_proto(totals),
        quantpack_wire.ecm_search_to_proto(EcmSearch(max_drop=0.01)),
        *(quantpack_wire.setting_to_proto(setting) for setting in standard_settings()),
        tokenreduce_wire.policy_to_proto(ReductionPolicy(tau=0.5)),
        tokenreduce_wire.settings_to_proto(CalibrationSettings(mean_tokens=3.0)),
        tokenreduce_wire.features_to_proto(torch.rand(2, 3, 3, 4)),
        tokenreduce_wire.distribution_to_proto(seen),
        tokenreduce_wire.budget_request_to_proto([torch.rand(2, 3, 3, 4)], 8, (1, 2), "image"),
        stagetrain_wire.schedule_to_proto(schedule),
        *(stagetrain_wire.stage_to_proto(stage) for stage in schedule.stages),
        stagetrain_wire.cost_to_proto(StageCost(schedule.stages[0], 100, 400.0, 0.1)),
        edgevlm_wire.spec_to_proto(spec),
        edgevlm_wire.request_to_proto("tiny", request, now_s=0.0),
        verbdistill_wire.match_request_to_proto(torch.rand(4, 6)),
        job_pb2.JobSpec(pack=job),
        job_pb2.JobSpec(evaluate=job_pb2.EvaluateJob(model="tiny", dataset="questions", num_workers=1)),
    ]


@pytest.mark.parametrize("seed", range(2))
def test_messages(count: Callable[[int, int], int], tmp_path: Path, seed: int) -> None:
    store = LocalStore(tmp_path)
    reading = readers()
    reading[job_pb2.JobSpec.DESCRIPTOR.full_name] = [lambda spec: check_spec(spec, store)]
    samples: dict[str, list[bytes]] = {}
    for path in sorted(GOLDEN.glob("*/messages/*.json")):
        for entry in json.loads(path.read_text(encoding="utf-8")):
            samples.setdefault(entry["message"], []).append(bytes.fromhex(entry["bytes"]))
    assert reading.keys() <= samples.keys()
    for right in right_messages():
        samples[right.DESCRIPTOR.full_name] += 4 * [right.SerializeToString()]
    accepted: set[str] = set()
    for name, functions in sorted(reading.items()):
        kind = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))

        def one(data: bytes, kind: Any = kind, functions: Any = functions) -> None:
            try:
                message = kind.FromString(data)
            except DecodeError:
                return
            same = kind.FromString(message.SerializeToString())
            assert same.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)
            for function in functions:
                read = partial(function, now_s=0.0) if function.__name__ == "request_from_proto" else function
                try:
                    value = read(message)
                except Exception as error:
                    # PackageError knows its own by isinstance alone.
                    if not isinstance(error, TYPED) or "\n" in str(error):
                        raise
                    continue
                accepted.add(function.__name__)
                write = writer(function)
                if write is not None:
                    check_right(message, value, read, write)

        run(one, samples[name], max(1, count(250_000, 6000) // len(reading)), seed)
    assert accepted == {each.__name__ for functions in reading.values() for each in functions}, "one refused everything"
