"""`vlmpress artifact tag|untag|gc|push|pull`."""

import asyncio
import json
from typing import Any

import pytest

from vlmpress import cli
from vlmpress.artifact import ArtifactError
from vlmpress_services.cli import app
from vlmpress_services.errors import ServicesError
from vlmpress_services.serving.server import Server, ServerConfig
from vlmpress_services.store.local import LocalStore


def run(*arguments: Any) -> int:
    return cli.run(app, (ServicesError, ArtifactError), ["artifact", *map(str, arguments)])


def test_tags_are_set_and_removed(store: LocalStore, add_log: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = add_log("a").digest, add_log("b").digest
    assert run("tag", "it", first, "--expect", "", "--store", store.root) == 0
    assert run("tag", "it", second, "--expect", "", "--store", store.root) == 2
    assert "expected no such tag, got " + first in capsys.readouterr().err
    assert run("tag", "it", second, "--expect", first, "--store", store.root) == 0
    assert run("tag", "also", "it", "--store", store.root) == 0
    assert store.tags() == {"it": second, "also": second}
    assert run("tag", "a/b", first, "--store", store.root) == 2
    assert run("untag", "it", "--expect", first, "--store", store.root) == 2
    assert run("untag", "it", "--store", store.root) == 0
    assert run("untag", "it", "--store", store.root) == 2
    assert run("tag", "it", first, "--store", store.root / "none") == 2
    assert store.tags() == {"also": second}


def test_garbage_goes(store: LocalStore, add_log: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kept, lost = add_log("a").digest, add_log("b").digest
    store.tag("it", kept)
    for arguments, there in (((), 2), (("--min-age-hours", 0, "--dry-run"), 2), (("--min-age-hours", 0), 1)):
        capsys.readouterr()
        assert run("gc", *arguments, "--json", "--store", store.root) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["digest"] for row in rows] == ([lost] if arguments else [])
        assert len(store.digests()) == there


async def test_an_artifact_is_pushed_and_pulled(
    store: LocalStore, add_log: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = add_log().digest
    there, back = LocalStore(tmp_path / "there"), LocalStore(tmp_path / "back")
    server = Server(ServerConfig(listen="127.0.0.1:0", store=there.root, services=("artifact",)))
    await server.start()

    def commands() -> list[int]:
        to = ("--server", server.address)
        return [
            run("push", digest, "--tag", "it", "--store", store.root, *to),
            run("pull", "it", "--tag", "mine", "--store", back.root, *to),
            run("pull", "none", "--store", back.root, *to),
            run("push", "none", "--store", store.root, *to),
            run("push", digest, "--store", store.root, "--server", "nowhere"),
        ]

    assert await asyncio.to_thread(commands) == [0, 0, 2, 2, 2]
    await server.stop(0.2)
    assert capsys.readouterr().out.split() == [digest, digest]
    assert there.verify("it").digest == back.verify("mine").digest == digest
