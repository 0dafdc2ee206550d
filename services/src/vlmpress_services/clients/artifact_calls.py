"""Calls of the artifact service, for synchronous and asyncio clients."""

from collections.abc import Callable
from typing import Any

from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.artifact.v1 import artifact_service_pb2 as pb
from vlmpress.artifact.v1 import artifact_service_pb2_grpc as pb_grpc
from vlmpress_services.clients.call import Call, Page
from vlmpress_services.clients.channel import LOAD_TIMEOUT_S

STUB = pb_grpc.ArtifactServiceStub
WRITE_FILE = f"/{pb.DESCRIPTOR.services_by_name['ArtifactService'].full_name}/WriteFile"
PAGE_SIZE = 1000
DAY_S = 24 * 3600.0


def manifest_call(ref: str) -> Call[tuple[str, artifact_pb2.Manifest]]:
    """The call of `manifest`."""
    return _call(
        "GetManifest", pb.GetManifestRequest(artifact=ref), lambda response: (response.digest, response.manifest)
    )


def list_call(kind: str, page_token: str) -> Call[Page[pb.ArtifactSummary]]:
    """The call for one page of `list`."""
    request = pb.ListArtifactsRequest(kind=kind, page_size=PAGE_SIZE, page_token=page_token)
    return _call(
        "ListArtifacts", request, lambda response: Page(items=response.artifacts, next_token=response.next_page_token)
    )


def verify_call(ref: str) -> Call[str]:
    """The call of `verify`."""
    request = pb.VerifyArtifactRequest(artifact=ref)
    return _call("VerifyArtifact", request, lambda response: response.fault, LOAD_TIMEOUT_S)


def tags_call() -> Call[dict[str, str]]:
    """The call of `tags`."""
    return _call("ListTags", pb.ListTagsRequest(), lambda response: {tag.name: tag.digest for tag in response.tags})


def tag_call(name: str, digest: str, expected: str | None) -> Call[None]:
    """The call of `tag`."""
    return _call("SetTag", pb.SetTagRequest(name=name, digest=digest, expected=expected), lambda _: None)


def untag_call(name: str, expected: str | None) -> Call[bool]:
    """The call of `untag`."""
    return _call("DeleteTag", pb.DeleteTagRequest(name=name, expected=expected), lambda response: response.deleted)


def garbage_call(min_age_s: float | None, dry_run: bool) -> Call[list[pb.ArtifactSummary]]:
    """The call of `collect_garbage`."""
    request = pb.CollectGarbageRequest(dry_run=dry_run)
    request.min_age.FromNanoseconds(round((DAY_S if min_age_s is None else min_age_s) * 1e9))
    return _call("CollectGarbage", request, lambda response: list(response.artifacts), LOAD_TIMEOUT_S)


def start_call(manifest_json: bytes) -> Call[pb.StartWriteResponse]:
    """The call that begins a write, or finds where one is."""
    return _call("StartWrite", pb.StartWriteRequest(manifest_json=manifest_json), lambda response: response)


def write_file(channel: Any) -> Any:
    """WriteFile over a channel, for requests that are encoded already."""
    return channel.stream_stream(WRITE_FILE, response_deserializer=pb.WriteFileResponse.FromString)


def commit_call(digest: str, tag: str) -> Call[pb.ArtifactSummary]:
    """The call that makes a write an artifact."""
    request = pb.CommitWriteRequest(digest=digest, tag=tag)
    return _call("CommitWrite", request, lambda response: response.artifact, LOAD_TIMEOUT_S)


def _call(method: str, request: Any, read: Callable[[Any], Any], timeout_s: float | None = None) -> Call[Any]:
    return Call(stub=STUB, method=method, request=request, read=read, timeout_s=timeout_s)
