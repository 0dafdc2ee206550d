"""The canonical JSON of a manifest."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmpress.artifact import ArtifactFaultError, from_json_bytes, to_json_bytes
from vlmpress.artifact.manifest import FORMAT_VERSION, kind_of
from vlmpress.artifact.v1 import artifact_pb2 as pb
from vlmpress.quantpack.v1 import quantpack_pb2

GOLDEN = Path(__file__).parent / "golden" / "manifest.json"

digests = st.text("0123456789abcdef", min_size=64, max_size=64)
texts = st.text(st.characters(codec="utf-8"))
# NaN is a figure too, but never equal to itself.
figures = st.floats(allow_nan=False)
manifests = st.builds(
    pb.Manifest,
    format_version=st.just(FORMAT_VERSION),
    kind=st.just("model"),
    model=st.builds(pb.Model, model_type=texts, num_params=st.integers(0, 2**64 - 1)),
    files=st.lists(st.builds(pb.File, path=texts, sha256=digests, size_bytes=st.integers(0, 2**64 - 1)), max_size=4),
    parents=st.lists(st.builds(pb.Parent, role=texts, digest=digests), max_size=4),
    producer=st.builds(pb.Producer, name=texts, version=texts),
    metrics=st.dictionaries(texts, figures, max_size=4),
)


def golden() -> pb.Manifest:
    scheme = quantpack_pb2.Scheme(bits=4, granularity=quantpack_pb2.GRANULARITY_GROUP, group_size=128)
    return pb.Manifest(
        format_version=1,
        kind="quantized_model",
        quantized_model=quantpack_pb2.QuantizedModel(
            scheme=scheme, num_codes=27, code_bytes_packed=14, code_bytes_compressed=12
        ),
        files=[
            pb.File(
                path="model.safetensors",
                sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                size_bytes=5_000_000_000,
            ),
            pb.File(
                path="notes/größe.txt",
                sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                size_bytes=3,
            ),
        ],
        parents=[pb.Parent(role="model", digest="f" * 64), pb.Parent(role="calibration", digest="0" * 64)],
        producer=pb.Producer(name="vlmpress-quantpack", version="0.1.0"),
        metrics={"seconds": 60.0, "bits_per_weight": 4.25, "cr_codes": 1.1},
    )


def test_bytes_are_those_of_the_golden_file() -> None:
    # A change here changes the digest of every artifact that exists: it needs a new format_version.
    assert to_json_bytes(golden()) == GOLDEN.read_bytes()


def test_golden_file_reads_back() -> None:
    assert from_json_bytes(GOLDEN.read_bytes()) == golden()


@given(manifests)
def test_any_manifest_round_trips(manifest: pb.Manifest) -> None:
    data = to_json_bytes(manifest)
    assert from_json_bytes(data) == manifest
    assert to_json_bytes(from_json_bytes(data)) == data


@given(st.dictionaries(texts, figures, max_size=6))
def test_order_of_metrics_does_not_change_the_bytes(metrics: dict[str, float]) -> None:
    backwards = dict(reversed(metrics.items()))
    assert to_json_bytes(pb.Manifest(metrics=metrics)) == to_json_bytes(pb.Manifest(metrics=backwards))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"bits": 4', b'"bits":  4'),
        (b'"bits": 4', b'"bits": 4.0'),
        (b'"bits": 4', b'"bits": "4"'),
        (b'"size_bytes": "3"', b'"size_bytes": 3'),
        (b'"size_bytes": "3"', b'"sizeBytes": "3"'),
        (b'"group_size": 128', b'"group_size": 128,\n      "symmetric": false'),
        (b"4.25", b"4.250"),
        (b"60.0", b"60"),
        (b"\xc3\xb6", b"\\u00f6"),
        (b"\n}\n", b"\n}"),
        (b"\n}\n", b"\n}\n\n"),
        (b"\n}\n", b"\n}\r\n"),
        (b'{\n  "files"', b'\xef\xbb\xbf{\n  "files"'),
        (b'"kind": "quantized_model"', b'"kind": "model"'),
        (b'"kind": "quantized_model"', b'"kind": "quantized_model",\n  "kind": "quantized_model"'),
        (b'"format_version": 1', b'"format_version": 2'),
        (b'"format_version": 1,\n', b""),
        (b'"GRANULARITY_GROUP"', b"3"),
    ],
)
def test_other_spellings_of_the_same_manifest_are_refused(old: bytes, new: bytes) -> None:
    data = GOLDEN.read_bytes()
    assert old in data
    with pytest.raises(ArtifactFaultError, match=r"manifest\.json"):
        from_json_bytes(data.replace(old, new, 1))


@pytest.mark.parametrize("offset", range(0, GOLDEN.stat().st_size, 7))
def test_a_manifest_without_its_end_is_refused(offset: int) -> None:
    with pytest.raises(ArtifactFaultError):
        from_json_bytes(GOLDEN.read_bytes()[:offset])


@given(st.binary(max_size=60) | st.text('{}[]":,0123456789.-eE\\u \nkindfilesog').map(str.encode))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    with pytest.raises(ArtifactFaultError):
        from_json_bytes(data)


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'{"log":' * 100_000, b"1" * 5000, b'{"kind": "\\ud800"}', b"[]", b"5", b"null"]
)
def test_odd_json_is_a_fault_in_one_line(data: bytes) -> None:
    with pytest.raises(ArtifactFaultError) as caught:
        from_json_bytes(data)
    assert "\n" not in str(caught.value)


def test_every_specification_has_a_kind() -> None:
    fields = pb.Manifest.DESCRIPTOR.oneofs_by_name["spec"].fields
    kinds = ["dataset", "model", "quantized_model", "reduction_policy", "stage_schedule", "verbalizers", "distillation"]
    assert [field.name for field in fields] == [*kinds, "edge_model", "evaluation", "report", "log"]
    assert kind_of(pb.Log(source="serve")) == "log"
    with pytest.raises(TypeError, match="File is no artifact specification"):
        kind_of(pb.File())
