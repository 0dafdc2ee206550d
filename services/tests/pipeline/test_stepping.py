import json

import pytest

from vlmpress.artifact import ArtifactFaultError, verify
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.pipeline.stepping import Outcome, Stepper

VERSIONS = {"vlmpress-services": "1"}


def _maker(text, calls):
    def make(work):
        calls.append(text)
        (work.path / "file.txt").write_text(text)
        return Outcome(artifact_pb2.Log(source=text), {"figure": 1.0})

    return make


def test_a_known_key_is_reused_and_a_new_one_is_not(tmp_path):
    calls = []
    first = Stepper(tmp_path, 0, VERSIONS)
    one = first.run("a", {"x": 1}, (), _maker("one", calls))
    two = first.run("b", {}, [("base", one)], _maker("two", calls))
    again = Stepper(tmp_path, 0, VERSIONS)
    assert again.run("a", {"x": 1}, (), _maker("one", calls)).digest == one.digest
    assert again.run("b", {}, [("base", one)], _maker("two", calls)).digest == two.digest
    assert calls == ["one", "two"]
    assert [record.reused for record in again.records] == [True, True]
    assert again.records[0].seconds == first.records[0].seconds
    for changed in (Stepper(tmp_path, 1, VERSIONS), Stepper(tmp_path, 0, {"vlmpress-services": "2"})):
        changed.run("a", {"x": 1}, (), _maker("one", calls))
    again.run("a", {"x": 2}, (), _maker("one", calls))
    assert len(calls) == 5


def test_an_artifact_has_its_parents_and_metrics(tmp_path):
    stepper = Stepper(tmp_path, 0, VERSIONS)
    one = stepper.run("a", {}, (), _maker("one", []))
    two = stepper.run("b", {}, [("base", one)], _maker("two", []))
    manifest = verify(two.path).manifest
    assert [(parent.role, parent.digest) for parent in manifest.parents] == [("base", one.digest)]
    assert dict(manifest.metrics) == {"figure": 1.0}
    assert stepper.store.resolve("b").digest == two.digest


def test_a_failing_step_leaves_its_scratch_and_no_artifact(tmp_path):
    stepper = Stepper(tmp_path, 0, VERSIONS)

    def fail(work):
        (work.scratch / "checkpoint").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") as raised:
        stepper.run("a", {}, (), fail)
    assert raised.value.filename == str(stepper.store.root)
    assert stepper.store.list() == []
    assert stepper.records == []
    found = []

    def resume(work):
        found.append((work.scratch / "checkpoint").read_text())
        return _maker("one", [])(work)

    stepper.run("a", {}, (), resume)
    assert found == ["half"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_changed_byte_in_a_reused_artifact_is_found(tmp_path):
    one = Stepper(tmp_path, 0, VERSIONS).run("a", {}, (), _maker("one", []))
    (one.path / "file.txt").write_text("own")
    with pytest.raises(ArtifactFaultError, match=r"file\.txt: expected SHA-256"):
        Stepper(tmp_path, 0, VERSIONS).run("a", {}, (), _maker("one", []))


def test_a_record_without_its_artifact_is_made_again(tmp_path):
    calls = []
    Stepper(tmp_path, 0, VERSIONS).run("a", {}, (), _maker("one", calls))
    for path in (tmp_path / "steps").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "0" * 64}))
    Stepper(tmp_path, 0, VERSIONS).run("a", {}, (), _maker("one", calls))
    assert calls == ["one", "one"]
