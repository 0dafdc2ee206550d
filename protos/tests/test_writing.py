"""Files and directories are there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from vlmpress.artifact import flush, flush_tree, whole_directory, whole_file


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_file_takes_the_place_of_another_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a"
    for content in (b"first", b"second"):
        before = target.read_bytes() if target.exists() else None
        with whole_file(target) as file:
            file.write(content)
            file.flush()
            assert (target.read_bytes() if target.exists() else None) == before
        assert target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["a"]
    (tmp_path / "usual").touch()
    assert mode(target) == mode(tmp_path / "usual")


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_a_file_that_fails_leaves_all_as_it_was(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_text("old")
    for name in ("a", "b"):
        with pytest.raises(type(error)), whole_file(tmp_path / name) as file:
            file.write(b"new")
            raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_directory_is_there_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "made"
    with whole_directory(target) as draft:
        (draft / "sub").mkdir()
        (draft / "sub" / "a").write_text("a")
        assert not target.exists()
    assert (target / "sub" / "a").read_text() == "a"
    assert [path.name for path in target.parent.iterdir()] == ["made"]
    assert mode(target) == 0o755


def test_a_directory_that_fails_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "kept").touch()
    for name in ("new", "old"):
        with pytest.raises(ValueError, match="x"), whole_directory(tmp_path / name, overwrite=True) as draft:
            (draft / "a").touch()
            raise ValueError("x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "old"]


def test_a_directory_is_replaced_when_that_is_asked_for_alone(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").touch()
    with pytest.raises(OSError, match="not empty"), whole_directory(tmp_path / "made") as draft:
        (draft / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "old"]
    with whole_directory(tmp_path / "made", overwrite=True) as draft:
        (draft / "new").touch()
        assert (tmp_path / "made" / "old").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "new"]


def test_everything_in_a_folder_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").touch()
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    flush_tree(tmp_path)
    assert set(flushed) == {path.stat().st_ino for path in (tmp_path, tmp_path / "sub", tmp_path / "sub" / "a")}


@pytest.mark.parametrize(("code", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_flush_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fails: bool
) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    if fails:
        with pytest.raises(OSError, match=os.strerror(code)):
            flush(tmp_path)
    else:
        flush(tmp_path)
