"""Many streams at a time against one after the other, through a real server over gRPC.

    python services/benchmarks/serving.py [--model DIR] [--streams 64] [--requests 128] [--out FILE.json]

The server is a process of its own; this one is the client. Requests are different questions about different
images, a third of them with earlier turns, so prompts differ in length. Answers are of three kinds: `natural`,
as the model ends them; `fixed`, --tokens each; `mixed`, of 1 to 2 --tokens - 1. The latter two are asked of a copy of
the model that knows no end token. Each kind is asked one request at a time and --streams at a time, in turns,
--rounds times; the table shows medians. Beside the clock's ratio stands that of the server's CPU seconds for a
token, which depends little on what else the machine does. Every answer is compared with the engine's own, made
without a batch in this process. Without --model it is the demo's teacher with random weights; after
`vlmpress demo --only teacher` it may be any model of that store.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import torch

from edgevlm.serving.engine import Engine
from edgevlm.serving.events import GeneratedToken
from edgevlm.serving.requests import GenerationRequest, Turn
from edgevlm.wire import request_to_proto
from vlmpress.artifact import read
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.data import Record
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub
from vlmpress_services.pipeline.shapes import draw_records
from vlmpress_services.pipeline.tiny_models import TinyShape, build_llava, build_processor, build_tower
from vlmpress_services.serving.launch import served
from vlmpress_services.store.local import LocalStore

PRODUCER = ("vlmpress-services", "0.1.0")
LONGEST_NATURAL = 16


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer as the client saw it: its tokens and when they came, seconds from the call."""

    token_ids: tuple[int, ...]
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """All requests answered once: seconds in all, the server's CPU seconds, and every answer."""

    wall_s: float
    server_cpu_s: float
    answers: list[Answered]

    @property
    def tokens_per_s(self) -> float:
        """Of all answers together."""
        return sum(len(answer.token_ids) for answer in self.answers) / self.wall_s

    def summary(self) -> dict[str, float]:
        """Throughput, and times to the first token and to the end of an answer."""
        first_ms = sorted(1000 * answer.first_s for answer in self.answers)
        return {
            "tokens_per_s": self.tokens_per_s,
            "server_cpu_ms_per_token": 1000 * self.server_cpu_s / (self.tokens_per_s * self.wall_s),
            "requests_per_s": len(self.answers) / self.wall_s,
            "ttft_ms_p50": statistics.median(first_ms),
            "ttft_ms_p99": first_ms[min(len(first_ms) - 1, int(0.99 * len(first_ms)))],
            "answer_ms_p50": statistics.median(1000 * answer.last_s for answer in self.answers),
        }


def workload(num_requests: int, folder: Path) -> list[tuple[bytes, list[Turn], str]]:
    """Image, earlier turns and question of each request."""
    records = draw_records(folder, "test", -(-num_requests // 3), 0, lambda *_: None)
    by_image: dict[Path, list[Record]] = {}
    for record in records:
        by_image.setdefault(record.images[0], []).append(record)
    made = []
    for path, asked in by_image.items():
        turns = [record.turns[0] for record in asked]
        for number, first in enumerate((0, 2, 4)):
            earlier = [Turn(question=t.question, answer=t.answer) for t in turns[:first] if number == 2]
            if earlier:
                earlier[0] = Turn(question=earlier[0].question, answer=earlier[0].answer, num_images=1)
            made.append((path.read_bytes(), earlier, turns[first].question))
    return made[:num_requests]


def requests_of(kind: str, work: list[tuple[bytes, list[Turn], str]], num_tokens: int) -> list[GenerationRequest]:
    rng = random.Random(0)
    lengths = {"natural": lambda: LONGEST_NATURAL, "fixed": lambda: num_tokens,
               "mixed": lambda: rng.randint(1, 2 * num_tokens - 1)}  # fmt: skip
    return [
        GenerationRequest(prompt=question, max_new_tokens=lengths[kind](), images=(image,), history=tuple(earlier))
        for image, earlier, question in work
    ]


def make_teacher(folder: Path, records_of: Path) -> None:
    """The demo's teacher, untrained."""
    records, shape = draw_records(records_of, "train", 40, 0, lambda *_: None), TinyShape()
    processor = build_processor(records, shape)
    build_llava(build_tower(shape, seed=0), processor, shape, num_layers=4, seed=0).save_pretrained(folder)
    processor.save_pretrained(folder)


def without_end(folder: Path) -> None:
    """Takes the end token out of a model's configuration, so that answers are as long as they may be."""
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = folder / name
        if path.exists():
            path.write_text(json.dumps(_without(json.loads(path.read_text()), ("eos_token_id", "eos_token"))))


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: None if name in names else _without(inner, names) for name, inner in value.items()}


def add(store: LocalStore, source: Path, *, endless: bool) -> Path:
    """Commits a copy of a model's directory; gives the artifact's."""
    with store.draft() as draft:
        shutil.copytree(source, draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.*"))
        if endless:
            without_end(draft.path)
        spec: Any = artifact_pb2.Model(model_type="benchmark")
        if (source / "manifest.json").exists():
            manifest = read(source).manifest
            spec = getattr(manifest, manifest.WhichOneof("spec") or "")
        return draft.commit(spec, producer=PRODUCER).path


def expected_tokens(engine: Engine, requests: Iterable[GenerationRequest]) -> list[tuple[int, ...]]:
    """Greedy answers without a batch."""
    answers = []
    for request in requests:
        events = engine.generate(request.images, request.prompt, request.max_new_tokens, history=request.history)
        answers.append(tuple(event.id for event in events if isinstance(event, GeneratedToken)))
    return answers


async def answered(stub: Any, message: pb.GenerateRequest) -> Answered:
    start_s, first_s, token_ids = time.perf_counter(), 0.0, []
    async for response in stub.Generate(message):
        if response.WhichOneof("event") == "token":
            first_s = first_s or time.perf_counter() - start_s
            token_ids.append(response.token.id)
    return Answered(tuple(token_ids), first_s, time.perf_counter() - start_s)


async def run(address: str, messages: list[pb.GenerateRequest], num_streams: int) -> Run:
    """Asks all, never more than `num_streams` at a time."""
    answers: dict[int, Answered] = {}
    waiting = iter(enumerate(messages))

    async def stream(stub: Any) -> None:
        for index, message in waiting:
            answers[index] = await answered(stub, message)

    async with grpc.aio.insecure_channel(address) as channel:
        stub = EdgeVlmServiceStub(channel)
        await stub.LoadModel(pb.LoadModelRequest(model=messages[0].model))
        start_s, start_cpu_s = time.perf_counter(), children_cpu_s()
        await asyncio.gather(*(stream(stub) for _ in range(num_streams)))
        wall_s, cpu_s = time.perf_counter() - start_s, children_cpu_s() - start_cpu_s
    return Run(wall_s, cpu_s, [answers[index] for index in range(len(messages))])


def children_cpu_s() -> float:
    """CPU seconds of this process's children, of which the server is the only one."""
    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children())


def measured(address: str, model: Path, requests: list[GenerationRequest], arguments: Any) -> dict[str, Any]:
    """Medians over rounds, one at a time and many at a time, and how many answers are as they should be."""
    messages = [request_to_proto(model.name, request, now_s=0) for request in requests]
    expected = expected_tokens(Engine.load(model), requests)
    asyncio.run(run(address, messages[: arguments.streams], arguments.streams))
    rounds: dict[str, list[Run]] = {"one": [], "many": []}
    for _ in range(arguments.rounds):
        for name, num_streams in (("one", 1), ("many", arguments.streams)):
            rounds[name].append(asyncio.run(run(address, messages, num_streams)))
    summaries = {name: [each.summary() for each in runs] for name, runs in rounds.items()}
    medians = {
        name: {key: statistics.median(each[key] for each in many) for key in many[0]}
        for name, many in summaries.items()
    }
    ratios = [many.tokens_per_s / one.tokens_per_s for one, many in zip(rounds["one"], rounds["many"], strict=True)]
    return {
        **medians,
        "throughput_ratio": statistics.median(ratios),
        "cpu_ratio": medians["one"]["server_cpu_ms_per_token"] / medians["many"]["server_cpu_ms_per_token"],
        "ratios": ratios,
        "tokens_mean": statistics.fmean(len(tokens) for tokens in expected),
        "identical": min(
            sum(answer.token_ids == tokens for answer, tokens in zip(each.answers, expected, strict=True))
            for each in rounds["one"] + rounds["many"]
        ),
        "requests": len(requests),
    }


def table(results: dict[str, Any]) -> str:
    lines = [
        "| answers | tokens | one at a time: tokens/s, TTFT p50, p99 | many | ratio | of CPU | as unbatched |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, one in results.items():
        cells = [
            f"{one[name]['tokens_per_s']:.0f}, {one[name]['ttft_ms_p50']:.0f} / {one[name]['ttft_ms_p99']:.0f} ms"
            for name in ("one", "many")
        ]
        ratios = f"{one['throughput_ratio']:.2f} | {one['cpu_ratio']:.2f}"
        same = f"{one['identical']} of {one['requests']}"
        lines.append(f"| {kind} | {one['tokens_mean']:.1f} | {cells[0]} | {cells[1]} | {ratios} | {same} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", default="fixed,mixed,natural")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        work = workload(arguments.requests, _made(root / "images"))
        source = arguments.model
        if source is None:
            source = _made(root / "teacher")
            make_teacher(source, _made(root / "words"))
        store = LocalStore(root / "store")
        models = {True: add(store, source, endless=True), False: add(store, source, endless=False)}
        results = {}
        with served(root / "store", "edgevlm", environment=environment) as address:
            for kind in arguments.kinds.split(","):
                requests = requests_of(kind, work, arguments.tokens)
                results[kind] = measured(address, models[kind != "natural"], requests, arguments)
                print(table(results), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    main()
