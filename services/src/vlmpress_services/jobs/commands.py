"""`vlmpress job`: start and follow jobs on a server."""

import json
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format

from vlmpress import cli
from vlmpress.cli import CheckFailedError, UserError
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.clients import Connection, JobClient
from vlmpress_services.clients.options import connected

app = typer.Typer(no_args_is_help=True, help="Start, follow, list and cancel jobs on a server, and read their logs.")

MAX_UINT32 = 2**32 - 1

JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
RequestOption = Annotated[str, typer.Option(help="The same id again gives the job it made; default: a new one.")]
WatchOption = Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")]
IdArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]


@app.command()
@connected
def create(
    spec: Annotated[Path, typer.Argument(help='JobSpec as JSON, for example {"train": {"model": "teacher", ...}}.')],
    connection: Connection,
    request_id: RequestOption = "",
    watch: WatchOption = False,
    as_json: JsonOption = False,
) -> None:
    """Starts a job and prints its id; with --watch follows it, exit code 1 unless it succeeds."""
    _start(_read(spec), connection, request_id, watch, as_json)


@app.command()
@connected
def distill(
    settings: Annotated[Path, typer.Argument(help="YAML of how to distil: distill (steps, rates, ...), batch_size.")],
    teacher: Annotated[str, typer.Option(help="Digest or tag of the teacher.")],
    student: Annotated[str, typer.Option(help="Digest or tag of the student as it is before.")],
    dataset: Annotated[str, typer.Option(help="Digest or tag of the dataset.")],
    connection: Connection,
    verbalizers: Annotated[str, typer.Option(help="The teacher's verbalizers; default: they are trained first.")] = "",
    num_workers: Annotated[
        int, typer.Option(min=0, max=MAX_UINT32, help="Processes that share each step, on Ray.")
    ] = 0,
    num_teachers: Annotated[
        int, typer.Option(min=0, max=MAX_UINT32, help="Processes on Ray that hold the teacher; 0: each worker does.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_UINT32, help="Of everything that is drawn.")] = 0,
    request_id: RequestOption = "",
    watch: WatchOption = False,
    as_json: JsonOption = False,
) -> None:
    """Starts a job that distils a teacher into a student (VLsI); prints as `create` does."""
    job = pb.DistillJob(
        teacher=teacher,
        student=student,
        dataset=dataset,
        teacher_verbalizers=verbalizers,
        settings_yaml=_text(settings, "settings as YAML"),
        num_workers=num_workers,
        num_teachers=num_teachers,
        seed=seed,
    )
    _start(pb.JobSpec(distill=job), connection, request_id, watch, as_json)


@app.command("watch")
@connected
def watch_command(job: IdArgument, connection: Connection, as_json: JsonOption = False) -> None:
    """Follows a job to its end; exit code 1 unless it succeeds."""
    with JobClient(connection) as client:
        ended = _follow(client, job)
    _show(ended, as_json)
    _check(ended)


@app.command("list")
@connected
def list_command(connection: Connection, as_json: JsonOption = False) -> None:
    """Lists all jobs, newest first."""
    with JobClient(connection) as client:
        jobs = client.list()
    if as_json:
        typer.echo(json.dumps({"jobs": [_fields(job) for job in jobs]}))
        return
    for job in jobs:
        typer.echo(_line(job))


@app.command()
@connected
def logs(
    job: IdArgument,
    connection: Connection,
    attempt: Annotated[
        int, typer.Option(min=0, max=MAX_UINT32, help="Which run of the job, from 1; default: the last.")
    ] = 0,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
) -> None:
    """Prints what a job's worker printed, also while it runs."""
    end: tuple[int, int] | None = None
    with JobClient(connection) as client:
        for piece in client.log(job, attempt, follow=follow):
            if end is not None and piece.attempt != end[0]:
                typer.echo(f"attempt {piece.attempt}", err=True)
            elif piece.offset > (0 if end is None else end[1]):
                typer.echo("... some of this log was left out ...", err=True)
            typer.echo(piece.data, nl=False)
            end = piece.attempt, piece.offset + len(piece.data)


@app.command()
@connected
def cancel(job: IdArgument, connection: Connection, as_json: JsonOption = False) -> None:
    """Asks a job to stop."""
    with JobClient(connection) as client:
        _show(client.cancel(job), as_json)


def _start(spec: pb.JobSpec, connection: Connection, request_id: str, watch: bool, as_json: bool) -> None:
    with JobClient(connection) as client:
        job = client.create(spec, request_id or uuid.uuid4().hex)
        if watch:
            job = _follow(client, job.job_id)
    _show(job, as_json) if watch or as_json else typer.echo(job.job_id)
    if watch:
        _check(job)


def _read(path: Path) -> pb.JobSpec:
    what = "a JobSpec as JSON"
    try:
        return json_format.Parse(_text(path, what), pb.JobSpec())
    except json_format.ParseError as error:
        raise UserError(f"{path}: expected {what}, got {' '.join(str(error).split())}") from error


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected {what}, got {' '.join(str(error).split())}") from error


def _follow(client: JobClient, job_id: str) -> pb.Job:
    job = pb.Job()
    with cli.progress(f"job {job_id[:8]}") as bar:
        for job in client.watch(job_id):
            bar.update(round(1000 * job.progress), 1000, job.message)
    return job


def _check(job: pb.Job) -> None:
    if job.state != pb.JOB_STATE_SUCCEEDED:
        raise CheckFailedError(f"job {job.job_id}: {_state(job)}: {job.message}")


def _show(job: pb.Job, as_json: bool) -> None:
    typer.echo(json.dumps(_fields(job)) if as_json else _line(job))


def _line(job: pb.Job) -> str:
    return f"{job.job_id} {job.spec.WhichOneof('work')} {_state(job)} {job.progress:.0%} {job.result or job.message}"


def _state(job: pb.Job) -> str:
    return pb.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def _fields(job: pb.Job) -> dict[str, Any]:
    return json_format.MessageToDict(job, preserving_proto_field_name=True)
