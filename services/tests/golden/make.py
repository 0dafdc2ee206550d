"""Makes what later versions have to read, in `<version>`, each with what its readers have to find in it.

`edge_packed` is a packed edge model, `jobs.sql` a table with a job in each state.
`python services/tests/golden/make.py` makes what is not there; what a released version has made stays.
"""

import json
import sqlite3
import sys
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import torch
from google.protobuf.json_format import MessageToDict

from edgevlm import build_from_llava
from quantpack import Scheme, pack
from vlmpress.data import Record, Turn
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress.quantpack.v1 import quantpack_pb2
from vlmpress_services.jobs.progress import Details
from vlmpress_services.jobs.table import Attempt, JobTable
from vlmpress_services.pipeline.tiny_models import TinyShape, build_llava, build_processor, build_tower

HERE = Path(__file__).resolve().parent
START_NS = 1_700_000_000 * 10**9
sys.path.insert(0, str(HERE))
from reading import read_pack  # noqa: E402


def save_edge_model(folder: Path) -> None:
    """An edge model of random weights, every one of which has a say, with its processor."""
    shape = TinyShape(image_px=32, hidden_size=32, language_intermediate_size=48, max_positions=256)
    turns = (Turn("what color is the shape ?", "red"), Turn("is it a circle ?", "yes"), Turn("is it blue ?", "no"))
    processor = build_processor([Record("1", (), turns)], shape)
    llava = build_llava(build_tower(shape, seed=0), processor, shape, num_layers=2, seed=0)
    model, processor = build_from_llava(llava, processor, num_compressed_tokens=4, fusion="cross")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_pack(folder: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        save_edge_model(Path(made))
        pack(Path(made), folder / "edge_packed", Scheme(group_size=16))
    found = json.dumps(read_pack(folder / "edge_packed"), indent=1)
    (folder / "edge_packed.json").write_text(f"{found}\n", encoding="utf-8")


def fill_table(table: JobTable) -> None:
    """A job in each state, each with everything that a job in this state can have; the pending one can be done."""

    def begun(request_id: str, spec: pb.JobSpec, runner: str = "local", details: Details | None = None) -> Attempt:
        attempt = table.begin(table.create(request_id, spec).job_id, runner)
        assert attempt is not None
        table.report(attempt, 0.25, "a quarter", details)
        return attempt

    model, dataset, result, log = (letter * 64 for letter in "abcd")
    train = pb.TrainJob(model=model, dataset=dataset, scheme="plain", settings_yaml="training: {max_steps: 8}")
    step = pb.TrainProgress(stage=1, num_stages=2, step=2, num_steps=8, loss=0.5, tokens_per_second=9, seconds_left=3)
    table.succeed(begun("succeeded", pb.JobSpec(train=train), details=step), result, log)
    distill = pb.DistillJob(teacher=model, student=model, dataset=dataset, num_teachers=2, seed=7)
    part = pb.DistillProgress(phase="sft", phase_step=2, num_phase_steps=4, step=6, num_steps=8, loss=0.5)
    table.fail(begun("failed", pb.JobSpec(distill=distill), details=part), "dataset: expected records, got none", log)
    evaluate = pb.EvaluateJob(model=model, dataset=dataset, num_workers=4, cpus_per_worker=2)
    cancelled = begun("cancelled", pb.JobSpec(evaluate=evaluate))
    table.cancel(cancelled.job_id)
    table.settle(cancelled, log)
    begun("running", pb.JobSpec(pipeline=pb.PipelineJob(config_yaml="seed: 3")), "ray")
    scheme = quantpack_pb2.Scheme(bits=4, granularity=quantpack_pb2.GRANULARITY_CHANNEL)
    table.lose(begun("pending", pb.JobSpec(pack=pb.PackJob(model="golden", scheme=scheme))), "the worker was killed")


def make_jobs(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        table = JobTable(Path(made))
        fill_table(table)
        with closing(sqlite3.connect(table.folder / "jobs.sqlite3")) as database:
            # A job that lost its worker waits a while by the clock of who reads it.
            database.execute(
                "UPDATE jobs SET create_time_ns = ? + number, update_time_ns = ? + number", (START_NS,) * 2
            )
            database.commit()
            schema = database.execute("PRAGMA user_version").fetchone()[0]
            lines = [*database.iterdump(), f"PRAGMA user_version = {schema};"]
            ids = dict(database.execute("SELECT request_id, job_id FROM jobs ORDER BY number"))
        jobs = {name: MessageToDict(table.get(job), preserving_proto_field_name=True) for name, job in ids.items()}
    (folder / "jobs.sql").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    found = json.dumps(jobs, indent=1)
    (folder / "jobs.json").write_text(f"{found}\n", encoding="utf-8")


def main() -> None:
    folder = HERE / version("vlmpress-services")
    for name, make in (("edge_packed", make_pack), ("jobs.sql", make_jobs)):
        if not (folder / name).exists():
            make(folder)


if __name__ == "__main__":
    main()
