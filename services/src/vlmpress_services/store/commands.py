"""`vlmpress artifact`: look into a store, or into any artifact directory, without a server."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format

from vlmpress.artifact import Artifact, ArtifactError, read, verify
from vlmpress.cli import CheckFailedError, UserError
from vlmpress_services.errors import InvalidRequestError, NotFoundError
from vlmpress_services.store.local import LocalStore

DEFAULT_STORE = Path("build/demo/store")

app = typer.Typer(no_args_is_help=True, help="Show, check and list artifacts.")

StoreOption = Annotated[Path, typer.Option("--store", help="Root of the store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
RefArgument = Annotated[str, typer.Argument(metavar="REF", help="Digest, tag or artifact directory.")]


@app.command()
def show(ref: RefArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Shows what one artifact is, what it was made from and what was measured."""
    artifact = read(_find(LocalStore(store), ref))
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
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Checks every byte of an artifact, or of all in the store; exit code 1 and one line on a fault."""
    local = LocalStore(store)
    refs = [ref] if ref is not None else list(_existing(local).digests())
    for item in refs:
        path = _find(local, item)
        try:
            artifact = verify(path)
        except ArtifactError as error:
            raise CheckFailedError(str(error)) from error
        if path.parent == local.root / "artifacts" and path.name != artifact.digest:
            raise CheckFailedError(f"{path}: expected a manifest of that digest, got {artifact.digest}")
        typer.echo(f"ok {artifact.manifest.kind} {artifact.digest}")


@app.command("list")
def list_command(
    kind: Annotated[str | None, typer.Option(help="Only artifacts of this kind.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Lists the artifacts of a store by digest."""
    local = _existing(LocalStore(store))
    tags = local.tags()
    rows = [_row(artifact, tags) for artifact in local.list(kind)]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['digest']} {row['kind']:<16} {row['size_bytes']:>12} {' '.join(row['tags'])}".rstrip())


def _existing(store: LocalStore) -> LocalStore:
    if not store.root.is_dir():
        raise UserError(f"{store.root}: expected an artifact store, got no directory; give one with --store")
    return store


def _find(store: LocalStore, ref: str) -> Path:
    """Folder of an artifact; a store's own names go before a directory of the same name."""
    try:
        return store.locate(ref)
    except (NotFoundError, InvalidRequestError) as error:
        path = Path(ref)
        if path.is_dir():
            return path
        raise UserError(f"{ref}: expected a digest or tag in {store.root}, or an artifact directory") from error


def _fields(artifact: Artifact) -> dict[str, Any]:
    return json_format.MessageToDict(artifact.manifest, preserving_proto_field_name=True)


def _row(artifact: Artifact, tags: dict[str, str]) -> dict[str, Any]:
    names = [name for name, digest in tags.items() if digest == artifact.digest]
    return {
        "digest": artifact.digest,
        "kind": artifact.manifest.kind,
        "tags": names,
        "size_bytes": artifact.size_bytes,
    }
