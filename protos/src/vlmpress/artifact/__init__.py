"""Artifact directories: write, read, verify, and find the code that a directory's config names."""

from vlmpress.artifact.digests import digest_bytes, digest_file
from vlmpress.artifact.directory import Artifact, check_files, read, verify
from vlmpress.artifact.drafting import Draft, create
from vlmpress.artifact.errors import ArtifactError, ArtifactFaultError, ExtensionMissingError
from vlmpress.artifact.extensions import (
    COMPRESSION_FILE,
    COMPRESSION_WEIGHTS_FILE,
    POLICY_FILE,
    compression_attachment,
    import_model_code,
    quantized_loader,
    reducer_attachment,
    write_policy,
)
from vlmpress.artifact.manifest import Spec, from_json_bytes, to_json_bytes
from vlmpress.artifact.writing import flush, flush_tree, make_folder, whole_directory, whole_file

__all__ = [
    "COMPRESSION_FILE",
    "COMPRESSION_WEIGHTS_FILE",
    "POLICY_FILE",
    "Artifact",
    "ArtifactError",
    "ArtifactFaultError",
    "Draft",
    "ExtensionMissingError",
    "Spec",
    "check_files",
    "compression_attachment",
    "create",
    "digest_bytes",
    "digest_file",
    "flush",
    "flush_tree",
    "from_json_bytes",
    "import_model_code",
    "make_folder",
    "quantized_loader",
    "read",
    "reducer_attachment",
    "to_json_bytes",
    "verify",
    "whole_directory",
    "whole_file",
    "write_policy",
]
