import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmpress.artifact import Artifact, ArtifactError, ArtifactFaultError, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import InvalidRequestError, NotFoundError
from vlmpress_services.store.local import LocalStore

AddLog = Callable[..., Artifact]
PRODUCER = ("vlmpress-services", "0.1.0")


def test_a_committed_draft_is_found_by_digest_and_tag(store: LocalStore, add_log: AddLog) -> None:
    artifact = add_log()
    assert artifact.path == store.root / "artifacts" / artifact.digest
    store.tag("latest", artifact.digest)
    assert store.resolve(artifact.digest) == store.resolve("latest") == artifact
    assert store.tags() == {"latest": artifact.digest}
    assert store.verify("latest") == artifact
    assert list((store.root / "incoming").iterdir()) == []


def test_equal_content_is_kept_once(store: LocalStore, add_log: AddLog) -> None:
    first = add_log()
    inode = (first.path / "log.txt").stat().st_ino
    second = add_log()
    assert second == first
    assert (second.path / "log.txt").stat().st_ino == inode
    assert len(store.list()) == 1


def test_an_uncommitted_draft_leaves_nothing(store: LocalStore) -> None:
    with store.draft() as draft:
        (draft.path / "half").write_text("half")
        assert store.list() == []
    assert list((store.root / "incoming").iterdir()) == []


def test_an_empty_store_lists_nothing_and_makes_nothing(store: LocalStore) -> None:
    assert store.list() == []
    assert store.tags() == {}
    assert not store.root.exists()


def test_list_by_kind(store: LocalStore, add_log: AddLog) -> None:
    log = add_log()
    with store.draft() as draft:
        (draft.path / "report.md").write_text("x")
        report = draft.commit(artifact_pb2.Report(title="t"), producer=PRODUCER, parents=[("log", log.digest)])
    assert store.list("report") == [report]
    assert store.list() == sorted([log, report], key=lambda artifact: artifact.digest)


def test_a_tag_moves(store: LocalStore, add_log: AddLog) -> None:
    store.tag("it", add_log("a").digest)
    second = add_log("b")
    store.tag("it", second.digest)
    assert store.resolve("it") == second
    assert [path.name for path in (store.root / "tags").iterdir()] == ["it"]


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a" * 129, "0" * 64, "a\n", "a b"])
def test_bad_tag_names_are_refused(store: LocalStore, add_log: AddLog, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        store.tag(name, add_log().digest)


@given(st.text(max_size=80))
def test_any_text_resolves_to_a_typed_error(tmp_path_factory: pytest.TempPathFactory, ref: str) -> None:
    store = LocalStore(tmp_path_factory.getbasetemp() / "nowhere")
    with pytest.raises((NotFoundError, InvalidRequestError)):
        store.resolve(ref)


def test_unknown_digests_are_not_found(store: LocalStore) -> None:
    with pytest.raises(NotFoundError):
        store.resolve("0" * 64)
    with pytest.raises(NotFoundError):
        store.tag("x", "0" * 64)
    with pytest.raises(InvalidRequestError):
        store.tag("x", "abc")


def test_a_changed_byte_is_a_fault(store: LocalStore, add_log: AddLog) -> None:
    artifact = add_log()
    (artifact.path / "log.txt").write_text("jello")
    store.resolve(artifact.digest)
    with pytest.raises(ArtifactFaultError, match=r"log\.txt"):
        store.verify(artifact.digest)


def test_an_artifact_under_another_digest_is_a_fault(store: LocalStore, add_log: AddLog) -> None:
    artifact = add_log()
    artifact.path.rename(artifact.path.with_name("0" * 64))
    with pytest.raises(ArtifactFaultError, match=artifact.digest):
        store.resolve("0" * 64)


def test_a_damaged_tag_is_a_fault(store: LocalStore, add_log: AddLog) -> None:
    store.tag("it", add_log().digest)
    (store.root / "tags" / "it").write_text("../../etc\n")
    with pytest.raises(ArtifactFaultError, match="tag 'it'"):
        store.resolve("it")


def test_add_copies_a_directory_and_checks_it(store: LocalStore, tmp_path: Path) -> None:
    with create(tmp_path / "made") as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a.txt").write_text("a")
        made = draft.commit(artifact_pb2.Log(source="test"), producer=PRODUCER)
    added = store.add(tmp_path / "made")
    assert added.digest == made.digest
    assert store.verify(made.digest) == added
    assert store.add(tmp_path / "made") == added
    (tmp_path / "made" / "extra").write_text("x")
    with pytest.raises(ArtifactFaultError, match="made/extra"):
        store.add(tmp_path / "made")
    with pytest.raises(ArtifactError, match="missing"):
        store.add(tmp_path / "missing")


def test_a_killed_writer_leaves_nothing_visible(store: LocalStore) -> None:
    script = """
import sys
from pathlib import Path
from vlmpress_services.store.local import LocalStore
with LocalStore(Path(sys.argv[1])).draft() as draft:
    (draft.path / "half").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    with store.draft():
        assert len(list((store.root / "incoming").iterdir())) == 2, "a living writer's folder was swept"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert store.list() == []
    with store.draft():
        assert len(list((store.root / "incoming").iterdir())) == 1
