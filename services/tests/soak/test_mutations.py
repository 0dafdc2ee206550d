"""Manifests and messages with changed bytes: a typed error or right data, soon, and in little memory."""

import importlib
import io
import json
import random
import time
from collections.abc import Callable
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
from edgevlm import GenerationRequest
from quantpack import EcmSearch, Recipe, Scheme, standard_settings
from stagetrain import named_schedule
from tokenreduce import ReductionPolicy
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


def right_messages() -> list[Message]:
    """Messages that are read without an error, for the golden ones hold every field and little sense."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 99, 199)).save(image, "PNG")
    request = GenerationRequest(prompt="is it red ?", max_new_tokens=4, images=(image.getvalue(),))
    job = job_pb2.PackJob(model="tiny", scheme=quantpack_wire.scheme_to_proto(Scheme()))
    return [
        quantpack_wire.scheme_to_proto(Scheme(granularity="agq")),
        quantpack_wire.recipe_to_proto(Recipe()),
        quantpack_wire.ecm_search_to_proto(EcmSearch(max_drop=0.01)),
        *(quantpack_wire.setting_to_proto(setting) for setting in standard_settings()),
        tokenreduce_wire.policy_to_proto(ReductionPolicy(tau=0.5)),
        tokenreduce_wire.settings_to_proto(CalibrationSettings(mean_tokens=3.0)),
        tokenreduce_wire.features_to_proto(torch.rand(2, 3, 3, 4)),
        stagetrain_wire.schedule_to_proto(named_schedule("three_stage_deeper", 8)),
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
    now_s = time.monotonic()
    special = {
        "request_from_proto": lambda function: lambda message: function(message, now_s=now_s, call_deadline_s=None)
    }
    samples: dict[str, list[bytes]] = {}
    for path in sorted(GOLDEN.glob("*/messages/*.json")):
        for entry in json.loads(path.read_text(encoding="utf-8")):
            samples.setdefault(entry["message"], []).append(bytes.fromhex(entry["bytes"]))
    assert reading.keys() <= samples.keys()
    for right in right_messages():
        samples[right.DESCRIPTOR.full_name] += 4 * [right.SerializeToString()]
    numbers: dict[str, int] = {}
    for name, functions in sorted(reading.items()):
        kind = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))
        wrapped = [special.get(getattr(each, "__name__", ""), lambda same: same)(each) for each in functions]

        def one(data: bytes, kind: Any = kind, wrapped: Any = wrapped, name: str = name) -> None:
            try:
                message = kind.FromString(data)
            except DecodeError:
                return
            numbers[name] = numbers.get(name, 0) + 1
            for function in wrapped:
                try:
                    function(message)
                except Exception as error:
                    # PackageError knows its own by isinstance alone.
                    if not isinstance(error, TYPED) or "\n" in str(error):
                        raise

        run(one, samples[name], max(1, count(250_000, 6000) // len(reading)), seed)
    assert numbers.keys() == reading.keys(), "a message was never read"
