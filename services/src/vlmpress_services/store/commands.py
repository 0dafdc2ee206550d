"""`vlmpress artifact`: look into a store or any artifact directory, name, delete, and send to and from a server."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format

from vlmpress.artifact import Artifact, ArtifactError, ArtifactFaultError, read, verify
from vlmpress.cli import CheckFailedError, UserError, progress
from vlmpress_services.clients.connection import Connection
from vlmpress_services.clients.options import connected
from vlmpress_services.errors import InvalidRequestError, NotFoundError
from vlmpress_services.garbage import roots
from vlmpress_services.store.interface import ArtifactStore, Described, Expected
from vlmpress_services.store.local import LocalStore
from vlmpress_services.store.names import check_tag
from vlmpress_services.store.opening import is_remote, open_store

DEFAULT_STORE = Path("build/demo/store")

app = typer.Typer(no_args_is_help=True, help="Show, check, list, name, delete, push and pull artifacts.")

StoreOption = Annotated[str, typer.Option("--store", help="Folder of the store, or s3://... or gs://...")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
RefArgument = Annotated[str, typer.Argument(metavar="REF", help="Digest, tag or artifact directory.")]


ExpectedOption = Annotated[
    str | None, typer.Option("--expect", help="Only if the tag points at this digest now; '' for no such tag.")
]
NameArgument = Annotated[str, typer.Argument(metavar="TAG", help="Name of the tag.")]


@app.command()
def show(ref: RefArgument, store: StoreOption = str(DEFAULT_STORE), as_json: JsonOption = False) -> None:
    """Shows what one artifact is, what it was made from and what was measured."""
    artifact = read(_find(open_store(store, writable=False), ref))
    if as_json:
        typer.echo(json.dumps({"digest": artifact.digest, "path": str(artifact.path), "manifest": _fields(artifact)}))
        return
    manifest = artifact.manifest
    typer.echo(f"{manifest.kind} {artifact.digest}")
    typer.echo(f"path      {artifact.path}")
    typer.echo(f"producer  {manifest.producer.name} {manifest.producer.version}")
    typer.echo(f"spec      {json.dumps(_fields(artifact).get(manifest.kind, {}), sort_keys=True)}")
    for parent in manifest.parents:
        typer.echo(f"parent    {parent.role} {parent.digest}")
    for file in manifest.files:
        typer.echo(f"file      {file.path} {file.size_bytes} bytes")
    for name, value in sorted(manifest.metrics.items()):
        typer.echo(f"metric    {name} {value:g}")


@app.command("verify")
def verify_command(
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="Digest, tag or directory; none: all.")] = None,
    store: StoreOption = str(DEFAULT_STORE),
) -> None:
    """Checks every byte of an artifact, or of all in the store; exit code 1 and one line on a fault."""
    opened = open_store(store, writable=False)
    refs = [ref] if ref is not None else list(_existing(store, writable=False).digests())
    for item in refs:
        try:
            artifact = _verified(opened, item)
        except ArtifactError as error:
            raise CheckFailedError(str(error)) from error
        typer.echo(f"ok {artifact.manifest.kind} {artifact.digest}")


@app.command("list")
def list_command(
    kind: Annotated[str | None, typer.Option(help="Only artifacts of this kind.")] = None,
    store: StoreOption = str(DEFAULT_STORE),
    as_json: JsonOption = False,
) -> None:
    """Lists the artifacts of a store by digest."""
    opened = _existing(store, writable=False)
    tags = opened.tags()
    _echo_rows([_row(artifact, tags) for artifact in opened.list(kind)], as_json)


@app.command()
def tag(
    name: NameArgument,
    ref: Annotated[str, typer.Argument(metavar="REF", help="Digest or tag to point at.")],
    expected: ExpectedOption = None,
    store: StoreOption = str(DEFAULT_STORE),
) -> None:
    """Points a tag of a store at an artifact."""
    opened = _existing(store)
    digest = opened.find(ref).digest
    opened.tag(name, digest, None if expected is None else Expected(expected or None))
    typer.echo(f"{name} {digest}")


@app.command()
def untag(name: NameArgument, expected: ExpectedOption = None, store: StoreOption = str(DEFAULT_STORE)) -> None:
    """Removes a tag of a store, not the artifact."""
    opened = _existing(store)
    if not opened.untag(name, None if expected is None else Expected(expected or None)):
        raise UserError(f"{name}: expected a tag in {store}, got none")


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    min_age_hours: Annotated[float, typer.Option(min=0, help="Artifacts younger than this stay.")] = 24.0,
    store: StoreOption = str(DEFAULT_STORE),
    as_json: JsonOption = False,
) -> None:
    """Deletes the artifacts of a store that no tag, job, step or other artifact leads to."""
    opened = _existing(store)
    tags = opened.tags()
    found = opened.collect_garbage(lambda: roots(opened.root), min_age_hours * 3600, dry_run=dry_run)
    _echo_rows([_row(artifact, tags) for artifact in found], as_json)


@app.command()
@connected
def push(
    ref: RefArgument,
    tag: Annotated[str, typer.Option(help="Tag on the server; default: none.")] = "",
    store: StoreOption = str(DEFAULT_STORE),
    *,
    connection: Connection,
) -> None:
    """Sends an artifact to a server; goes on where an earlier push broke off."""
    from vlmpress_services.clients import ArtifactClient

    path = _find(open_store(store, writable=False), ref)
    with ArtifactClient(connection) as client, progress("push") as shown:
        typer.echo(client.push(path, tag, shown.update))


@app.command()
@connected
def pull(
    ref: Annotated[str, typer.Argument(metavar="REF", help="Digest or tag on the server.")],
    tag: Annotated[str, typer.Option(help="Tag in the store; default: none.")] = "",
    store: StoreOption = str(DEFAULT_STORE),
    *,
    connection: Connection,
) -> None:
    """Fetches an artifact from a server into a store; goes on where an earlier pull broke off."""
    from vlmpress_services.clients import ArtifactClient

    if tag:
        check_tag(tag)
    with ArtifactClient(connection) as client, progress("pull") as shown:
        typer.echo(client.pull(ref, open_store(store), tag, shown.update).digest)


def _echo_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['digest']} {row['kind']:<16} {row['size_bytes']:>12} {' '.join(row['tags'])}".rstrip())


def _existing(location: str, *, writable: bool = True) -> ArtifactStore:
    if not is_remote(location) and not Path(location).is_dir():
        raise UserError(f"{location}: expected an artifact store, got no directory; give one with --store")
    return open_store(location, writable=writable)


def _verified(store: ArtifactStore, ref: str) -> Artifact:
    if not isinstance(store, LocalStore):
        return store.verify(ref)
    path = _find(store, ref)
    artifact = verify(path)
    if path.parent == store.root / "artifacts" and path.name != artifact.digest:
        raise ArtifactFaultError(f"{path}: expected a manifest of that digest, got {artifact.digest}")
    return artifact


def _find(store: ArtifactStore, ref: str) -> Path:
    """Folder of an artifact; a store's own names go before a directory of the same name."""
    try:
        # Nothing is read, so that a damaged one is found too.
        return store.locate(ref) if isinstance(store, LocalStore) else store.resolve(ref).path
    except (NotFoundError, InvalidRequestError) as error:
        path = Path(ref)
        if path.is_dir():
            return path
        raise UserError(f"{ref}: expected a digest or tag in {store.root}, or an artifact directory") from error


def _fields(artifact: Artifact) -> dict[str, Any]:
    return json_format.MessageToDict(artifact.manifest, preserving_proto_field_name=True)


def _row(artifact: Described, tags: dict[str, str]) -> dict[str, Any]:
    names = [name for name, digest in tags.items() if digest == artifact.digest]
    return {
        "digest": artifact.digest,
        "kind": artifact.manifest.kind,
        "tags": names,
        "size_bytes": artifact.size_bytes,
    }
