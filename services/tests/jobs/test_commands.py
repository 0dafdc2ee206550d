"""`vlmpress job` against a server in this process."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services import cli
from vlmpress_services.jobs.locks import JobLock
from vlmpress_services.jobs.logs import PART_BYTES, AttemptLog, log_folder
from vlmpress_services.jobs.table import JobTable
from vlmpress_services.serving.server import Server, ServerConfig


@pytest.fixture
async def server(store: Any) -> Any:
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("artifact", "job")))
    await server.start()
    yield server.address
    await server.stop(0.2)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command while the server answers; gives exit code, output and errors."""

    async def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["vlmpress", "job", *arguments])
        code = await asyncio.to_thread(cli.main)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


async def test_a_job_is_made_once_watched_listed_and_kept(
    server: str, command: Any, add_model: Any, tmp_path: Path
) -> None:
    spec = tmp_path / "job.json"
    scheme = {"bits": 4, "granularity": "GRANULARITY_GROUP", "group_size": 16}
    spec.write_text(json.dumps({"pack": {"model": add_model().digest, "scheme": scheme}}))
    create = ("create", str(spec), "--server", server, "--request-id", "one")
    code, out, _ = await command(*create)
    assert code == 0
    job_id = out.strip()
    code, out, _ = await command(*create, "--watch")
    assert (code, out.split()[:4]) == (0, [job_id, "pack", "succeeded", "100%"])
    code, out, _ = await command("watch", job_id, "--server", server, "--json")
    job = json.loads(out)
    assert (code, job["job_id"], job["state"]) == (0, job_id, "JOB_STATE_SUCCEEDED")
    code, out, _ = await command("list", "--server", server, "--json")
    assert json.loads(out) == {"jobs": [job]}
    code, out, _ = await command("list", "--server", server)
    assert out == f"{job_id} pack succeeded 100% {job['result']}\n"
    assert (await command("cancel", job_id, "--server", server))[:2] == (0, out)


async def test_a_job_that_fails_is_exit_code_1_and_one_line(
    server: str, command: Any, add_model: Any, tmp_path: Path
) -> None:
    spec = tmp_path / "job.json"
    scheme = {"bits": 5, "granularity": "GRANULARITY_TENSOR"}
    spec.write_text(json.dumps({"pack": {"model": add_model().digest, "scheme": scheme}}))
    code, out, errors = await command("create", str(spec), "--server", server, "--watch")
    assert code == 1
    assert " pack failed " in out
    assert errors.strip().endswith("failed: bits: expected 2 to 4, got 5")
    job_id = out.split()[0]
    code, out, _ = await command("logs", job_id, "--server", server)
    assert code == 0
    assert "expected 2 to 4, got 5" in out.splitlines()[-1]
    assert (await command("logs", job_id, "--attempt", "1", "--server", server))[:2] == (0, out)
    code, _, errors = await command("logs", job_id, "--attempt", "2", "--server", server)
    assert (code, errors.strip().endswith("attempt: expected at most 1, got 2")) == (2, True)


async def test_logs_of_a_job_that_runs_are_followed_and_say_what_is_left_out(
    server: str, store: Any, command: Any
) -> None:
    table = JobTable(store.root)
    spec = pb.JobSpec(pipeline=pb.PipelineJob(config_yaml="seed: 1"))
    # The server does not run it: somebody else is at it.
    job_id = table.create("a", spec).job_id
    with JobLock.take(table.folder, job_id):
        for number in (1, 2):
            attempt = table.begin(job_id)
            log = AttemptLog(log_folder(store.root, job_id), number)
            log.write(b"begun\n" + b"x" * 4 * PART_BYTES + b"\nended\n" if number == 2 else b"first\n")
            log.close()
            if number == 1:
                assert table.give_back(attempt, "stopped")
        code, out, errors = await command("logs", job_id, "--server", server)
        assert (code, out[:6], out[-7:], len(out)) == (0, "begun\n", "\nended\n", 2 * PART_BYTES + 13)
        assert errors == "... some of this log was left out ...\n"
        assert table.fail(attempt, "on purpose")
        code, out, errors = await command("logs", job_id, "--attempt", "1", "--follow", "--server", server)
        assert (code, out[:12], errors) == (0, "first\nbegun\n", "attempt 2\n... some of this log was left out ...\n")


async def test_bad_input_is_exit_code_2_and_one_line(server: str, command: Any, tmp_path: Path) -> None:
    spec = tmp_path / "job.json"
    for text, expected in (
        ("{", f"{spec}: expected a JobSpec as JSON, got"),
        ('{"trian": {}}', 'no field named "trian"'),
        ("{}", "INVALID_ARGUMENT: spec: expected one kind of work, got none"),
        ('{"train": {"model": "x"}}', "NOT_FOUND: artifact 'x'"),
    ):
        spec.write_text(text)
        code, out, errors = await command("create", str(spec), "--server", server)
        assert (code, out) == (2, "")
        assert len(errors.strip().splitlines()) == 1
        assert expected in errors
    assert (await command("create", str(tmp_path / "none.json"), "--server", server))[0] == 2
    code, _, errors = await command("watch", "0" * 32, "--server", server)
    assert (code, "NOT_FOUND" in errors) == (2, True)


async def test_a_distillation_is_started_from_options(
    server: str, command: Any, add_model: Any, add_dataset: Any, store: Any, tmp_path: Path
) -> None:
    settings = tmp_path / "distill.yaml"
    steps = "num_verbalization_steps: 1, num_interaction_steps: 1, num_sft_steps: 1, lora_rank: null"
    settings.write_text(f"batch_size: 2\ndistill: {{{steps}}}\n")
    store.tag("it", add_model().digest)
    store.tag("data", add_dataset().digest)
    options = ("--teacher", "it", "--student", "it", "--dataset", "data", "--seed", "5", "--server", server)
    code, out, errors = await command("distill", str(settings), *options, "--watch", "--json")
    assert code == 0, errors
    job = json.loads(out)
    assert job["spec"]["distill"]["seed"] == "5"
    assert job["distill_progress"]["phase"] == "sft"
    assert (job["distill_progress"]["step"], job["distill_progress"]["num_steps"]) == ("4", "4")
    assert store.resolve(job["result"]).manifest.kind == "model"
    assert (await command("distill", str(tmp_path / "none.yaml"), *options))[0] == 2
    settings.write_text("batch_size: 2")
    code, _, errors = await command("distill", str(settings), *options)
    assert code == 2
    assert errors.strip().endswith(
        "INVALID_ARGUMENT: settings_yaml: distill: expected num_verbalization_steps, got none"
    )
