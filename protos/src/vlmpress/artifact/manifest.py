"""The manifest and its canonical JSON.

protobuf's binary form is not canonical, so the JSON text is what is hashed: the message's JSON
mapping under the proto field names, keys sorted, two spaces of indent, UTF-8, one final newline.
"""

import json

from google.protobuf import json_format

from vlmpress.artifact.errors import ArtifactFaultError
from vlmpress.artifact.v1 import artifact_pb2 as pb
from vlmpress.dataset.v1 import dataset_pb2
from vlmpress.edgevlm.v1 import edgevlm_pb2
from vlmpress.evaluation.v1 import evaluation_pb2
from vlmpress.quantpack.v1 import quantpack_pb2
from vlmpress.stagetrain.v1 import stagetrain_pb2
from vlmpress.tokenreduce.v1 import tokenreduce_pb2
from vlmpress.verbdistill.v1 import verbdistill_pb2

FORMAT_VERSION = 1

Spec = (
    dataset_pb2.Dataset
    | pb.Model
    | quantpack_pb2.QuantizedModel
    | tokenreduce_pb2.ReductionPolicy
    | stagetrain_pb2.StageSchedule
    | verbdistill_pb2.Verbalizers
    | verbdistill_pb2.Distillation
    | edgevlm_pb2.EdgeModel
    | evaluation_pb2.Evaluation
    | pb.Report
    | pb.Log
)


def kind_of(spec: Spec) -> str:
    """Name of the manifest field that holds a specification of this type."""
    for field in pb.Manifest.DESCRIPTOR.oneofs_by_name["spec"].fields:
        if field.message_type == spec.DESCRIPTOR:
            return str(field.name)
    raise TypeError(f"{type(spec).__name__} is no artifact specification")


def to_json_bytes(manifest: pb.Manifest) -> bytes:
    """Canonical JSON of a manifest."""
    fields = json_format.MessageToDict(manifest, preserving_proto_field_name=True)
    return (json.dumps(fields, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def from_json_bytes(data: bytes) -> pb.Manifest:
    """Reads canonical JSON; raises ArtifactFaultError for anything that is not exactly canonical."""
    try:
        manifest = json_format.Parse(data.decode(), pb.Manifest(), max_recursion_depth=20)
    except (UnicodeDecodeError, json_format.ParseError, RecursionError) as error:
        raise ArtifactFaultError(f"manifest.json: expected a manifest as JSON, got {_one_line(error)}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise ArtifactFaultError(
            f"manifest.json: expected format_version {FORMAT_VERSION}, got {manifest.format_version}"
        )
    if manifest.kind != manifest.WhichOneof("spec"):
        raise ArtifactFaultError(
            f"manifest.json: kind {manifest.kind!r} but the spec is {manifest.WhichOneof('spec')!r}"
        )
    if to_json_bytes(manifest) != data:
        raise ArtifactFaultError("manifest.json: expected canonical JSON (UTF-8, sorted keys, indent 2)")
    return manifest


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
