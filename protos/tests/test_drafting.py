"""An artifact is there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from vlmpress.artifact import Artifact, ArtifactError, create, drafting, read, verify
from vlmpress.artifact.v1 import artifact_pb2 as pb

PRODUCER = ("vlmpress-contracts", "0.1.0")
SPEC = pb.Log(source="test")


def test_nothing_shows_before_the_commit(tmp_path: Path) -> None:
    with create(tmp_path / "made") as draft:
        (draft.path / "a").write_text("a")
        assert not (tmp_path / "made").exists()
        assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
        draft.commit(SPEC, producer=PRODUCER)
        assert (tmp_path / "made" / "a").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_without_a_commit_nothing_is_left(tmp_path: Path) -> None:
    with create(tmp_path / "made") as draft:
        (draft.path / "a").write_text("a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_an_exception_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), create(tmp_path / "made") as draft:
        (draft.path / "a").write_text("a")
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), create(tmp_path / "made") as draft:
        (draft.path / "a").write_bytes(b"a" * 5000)
        Path("/dev/full").write_bytes(b"b" * 5000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["write_bytes", "write_text", "rename", "flush_tree"])
def test_a_disk_that_fills_up_in_the_commit_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"), create(tmp_path / "made") as draft:
        (draft.path / "a").write_bytes(b"a")
        monkeypatch.setattr(drafting if step == "flush_tree" else Path, step, fail)
        draft.commit(SPEC, producer=PRODUCER)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_is_never_replaced(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="does not exist yet"), create(artifact.path):
        pytest.fail("an existing artifact was opened for writing")
    assert verify(artifact.path) == artifact


def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist yet"), create(tmp_path / "made") as draft:
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "other").touch()
        draft.commit(SPEC, producer=PRODUCER)
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "other"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with create(tmp_path / "made") as draft:
        draft.commit(SPEC, producer=PRODUCER)
    verify(tmp_path / "made")


def test_parents_of_the_target_are_made(tmp_path: Path) -> None:
    with create(tmp_path / "a" / "b" / "made") as draft:
        draft.commit(SPEC, producer=PRODUCER)
    verify(tmp_path / "a" / "b" / "made")


def test_order_of_parents_is_kept(tmp_path: Path) -> None:
    parents = [("teacher", "f" * 64), ("data", "0" * 64), ("teacher", "a" * 64)]
    with create(tmp_path / "made") as draft:
        draft.commit(SPEC, producer=PRODUCER, parents=parents, metrics={"seconds": 1.5})
    manifest = read(tmp_path / "made").manifest
    assert [(parent.role, parent.digest) for parent in manifest.parents] == parents
    assert dict(manifest.metrics) == {"seconds": 1.5}


def test_same_content_has_the_same_digest_and_other_content_another(tmp_path: Path) -> None:
    digests = []
    for name, text, source in [("a", "x", "s"), ("b", "x", "s"), ("c", "y", "s"), ("d", "x", "t")]:
        with create(tmp_path / name) as draft:
            (draft.path / "file").write_text(text)
            digests.append(draft.commit(pb.Log(source=source), producer=PRODUCER).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_an_empty_specification_still_has_its_kind(tmp_path: Path) -> None:
    with create(tmp_path / "made") as draft:
        draft.commit(pb.Log(), producer=PRODUCER)
    assert read(tmp_path / "made").manifest.WhichOneof("spec") == "log"


def test_a_second_commit_is_refused(tmp_path: Path) -> None:
    with create(tmp_path / "made") as draft:
        draft.commit(SPEC, producer=PRODUCER)
        with pytest.raises(ArtifactError, match="expected one commit"):
            draft.commit(SPEC, producer=PRODUCER)
    verify(tmp_path / "made")


def test_after_the_commit_an_exception_takes_nothing_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="later"), create(tmp_path / "made") as draft:
        draft.commit(SPEC, producer=PRODUCER)
        raise ValueError("later")
    verify(tmp_path / "made")


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "a\\b", "bad\udcff"])
def test_names_an_artifact_cannot_hold_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="expected"), create(tmp_path / "made") as draft:
        (draft.path / name).touch()
        draft.commit(SPEC, producer=PRODUCER)
    assert list(tmp_path.iterdir()) == []


def test_links_and_empty_folders_are_refused(tmp_path: Path) -> None:
    for make in (lambda path: path.symlink_to("/etc"), lambda path: path.mkdir()):
        with pytest.raises(ArtifactError), create(tmp_path / "made") as draft:
            make(draft.path / "odd")
            draft.commit(SPEC, producer=PRODUCER)
    assert list(tmp_path.iterdir()) == []


def test_readable_by_others_as_an_ordinary_folder_is(artifact: Artifact) -> None:
    assert artifact.path.stat().st_mode & 0o777 == 0o755
