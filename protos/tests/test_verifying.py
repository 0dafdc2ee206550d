"""No byte of an artifact changes unnoticed."""

import os
import shutil
from pathlib import Path

import pytest

from vlmpress.artifact import (
    Artifact,
    ArtifactError,
    ArtifactFaultError,
    check_files,
    digest_bytes,
    read,
    to_json_bytes,
    verify,
)
from vlmpress.artifact.v1 import artifact_pb2 as pb


def rewrite(path: Path, manifest: pb.Manifest) -> None:
    """Puts another manifest into a directory, digest included, as a forger would."""
    data = to_json_bytes(manifest)
    (path / "manifest.json").write_bytes(data)
    (path / "manifest.sha256").write_text(digest_bytes(data) + "\n")


def test_round_trip(artifact: Artifact) -> None:
    assert read(artifact.path) == verify(artifact.path) == artifact
    assert artifact.digest == digest_bytes((artifact.path / "manifest.json").read_bytes())
    assert (artifact.path / "manifest.sha256").read_bytes() == f"{artifact.digest}\n".encode()
    assert [file.path for file in artifact.manifest.files] == ["empty.txt", "sub/deep/note.txt", "weights.bin"]
    assert artifact.size_bytes == 44
    assert artifact.manifest.kind == "model"
    assert artifact.manifest.producer.name == "vlmpress-contracts"


def test_a_copy_elsewhere_has_the_same_digest(artifact: Artifact, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact.path, tmp_path / "elsewhere" / "copy")
    assert verify(copy).digest == artifact.digest


def test_every_changed_byte_is_found(artifact: Artifact) -> None:
    for path in sorted(artifact.path.rglob("*")):
        if path.is_dir():
            continue
        content = path.read_bytes()
        for offset in range(len(content)):
            for flip in (0x01, 0x80):
                changed = bytearray(content)
                changed[offset] ^= flip
                path.write_bytes(changed)
                with pytest.raises(ArtifactFaultError):
                    verify(artifact.path)
        path.write_bytes(content)
    verify(artifact.path)


@pytest.mark.parametrize("name", ["weights.bin", "empty.txt", "sub/deep/note.txt", "manifest.json", "manifest.sha256"])
def test_a_changed_length_is_found(artifact: Artifact, name: str) -> None:
    path = artifact.path / name
    content = path.read_bytes()
    for changed in (content + b"\0", content + b"\n", content[:-1]):
        if changed != content:
            path.write_bytes(changed)
            with pytest.raises(ArtifactFaultError):
                verify(artifact.path)


@pytest.mark.parametrize("name", ["weights.bin", "empty.txt", "sub/deep/note.txt"])
def test_a_missing_file_is_found(artifact: Artifact, name: str) -> None:
    (artifact.path / name).unlink()
    with pytest.raises(ArtifactFaultError):
        verify(artifact.path)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_without_its_manifest_it_is_no_artifact(artifact: Artifact, name: str) -> None:
    (artifact.path / name).unlink()
    with pytest.raises(ArtifactError, match="expected an artifact directory") as caught:
        verify(artifact.path)
    assert not isinstance(caught.value, ArtifactFaultError)


def test_no_directory_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected an artifact directory"):
        read(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="expected an artifact directory"):
        read(tmp_path / "file")


@pytest.mark.parametrize("name", ["extra", ".hidden", "sub/extra", "sub/manifest.json", "manifest.json~"])
def test_an_extra_file_is_found(artifact: Artifact, name: str) -> None:
    (artifact.path / name).touch()
    with pytest.raises(ArtifactFaultError, match=r"not listed in the manifest"):
        verify(artifact.path)


@pytest.mark.parametrize("name", ["empty", "sub/empty", "sub/deep/a/b"])
def test_an_empty_folder_is_found(artifact: Artifact, name: str) -> None:
    (artifact.path / name).mkdir(parents=True)
    with pytest.raises(ArtifactFaultError, match="expected no empty folder"):
        verify(artifact.path)


@pytest.mark.parametrize("name", ["weights.bin", "manifest.json", "manifest.sha256"])
def test_a_link_in_a_files_place_is_found(artifact: Artifact, tmp_path: Path, name: str) -> None:
    (artifact.path / name).rename(tmp_path / "moved")
    (artifact.path / name).symlink_to(tmp_path / "moved")
    with pytest.raises(ArtifactFaultError, match="expected a regular file"):
        verify(artifact.path)


def test_a_link_to_a_folder_is_found(artifact: Artifact) -> None:
    (artifact.path / "sub" / "loop").symlink_to(artifact.path)
    with pytest.raises(ArtifactFaultError, match="expected a regular file"):
        verify(artifact.path)


def test_a_pipe_is_found_and_not_opened(artifact: Artifact) -> None:
    os.mkfifo(artifact.path / "pipe")
    with pytest.raises(ArtifactFaultError, match="expected a regular file"):
        verify(artifact.path)


def test_a_folder_in_a_files_place_is_found(artifact: Artifact) -> None:
    (artifact.path / "weights.bin").unlink()
    (artifact.path / "weights.bin").mkdir()
    (artifact.path / "weights.bin" / "inside").touch()
    with pytest.raises(ArtifactFaultError):
        verify(artifact.path)


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "sub/../weights.bin", "./weights.bin", "sub//x", "", ".", "a\\b", "manifest.json"],
)
def test_a_forged_path_is_refused(artifact: Artifact, name: str) -> None:
    (artifact.path.parent / "outside").touch()
    manifest = pb.Manifest()
    manifest.CopyFrom(artifact.manifest)
    manifest.files.insert(0, pb.File(path=name, sha256=digest_bytes(b""), size_bytes=0))
    manifest.files.sort(key=lambda file: file.path)
    rewrite(artifact.path, manifest)
    with pytest.raises(ArtifactFaultError):
        verify(artifact.path)


def test_files_out_of_order_or_twice_are_refused(artifact: Artifact) -> None:
    for order in ([1, 0, 2], [0, 1, 1, 2]):
        manifest = pb.Manifest()
        manifest.CopyFrom(artifact.manifest)
        del manifest.files[:]
        manifest.files.extend(artifact.manifest.files[index] for index in order)
        rewrite(artifact.path, manifest)
        with pytest.raises(ArtifactFaultError, match="sorted by path, each once"):
            verify(artifact.path)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["a", "a/b"], "to be a file or a folder, got both"),
        (["manifest.json/b"], "no folder of the name"),
        (["a\0b"], "expected a relative path"),
        (["a/" + "b" * 256], "expected a relative path"),
        (["\u00e4" * 128], "expected a relative path"),
        (["manifest.sha256"], "expected a relative path"),
    ],
)
def test_files_that_no_directory_can_hold_are_refused(names: list[str], match: str) -> None:
    manifest = pb.Manifest(files=[pb.File(path=name, sha256=digest_bytes(b"")) for name in names])
    with pytest.raises(ArtifactFaultError, match=match):
        check_files(manifest)


def test_a_digest_that_is_none_is_refused() -> None:
    with pytest.raises(ArtifactFaultError, match="64 hex digits"):
        check_files(pb.Manifest(files=[pb.File(path="a", sha256="0" * 63)]))
    check_files(pb.Manifest(files=[pb.File(path="a" * 255, sha256="0" * 64), pb.File(path="b/c", sha256="0" * 64)]))
