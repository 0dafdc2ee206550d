"""Stores by where they are."""

import hashlib
import math
import os
import re
from pathlib import Path

from vlmpress.artifact import whole_file
from vlmpress_services.errors import ExtraMissingError, InvalidRequestError
from vlmpress_services.store.interface import ArtifactStore
from vlmpress_services.store.local import LocalStore

_URL = re.compile(r"([a-z0-9+]+)://.+")
SCHEMES = ("s3", "gs")
URL_FILE = "store.url"
SOLE_WRITER = "sole writer"
CACHE_BYTES = "cache bytes "


def is_remote(location: str | Path) -> bool:
    """Whether this is a URL and not a folder."""
    return _URL.fullmatch(str(location)) is not None


def open_store(
    location: str | Path,
    *,
    root: Path | None = None,
    sole_writer: bool = False,
    cache_bytes: int | None = None,
    lease_s: float = math.inf,
    writable: bool = True,
) -> ArtifactStore:
    """The store in a folder, or in a bucket: s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.

    A folder with a file `store.url` that holds such a URL (and, in lines of their own, "sole writer" where that is so,
    "cache bytes N" where there is a bound) is this machine's side of a bucket: artifacts and tags are there, jobs and
    what is fetched here. So a server, its jobs and commands find the bucket by one path; who opens a URL to write
    leaves the file. A bucket's credentials, region and endpoint come from the environment (AWS_*, GOOGLE_*).

    Args:
        location: Folder or URL.
        root: Folder of this machine for what a remote store keeps here; None: one of its own under
            VLMPRESS_CACHE, by default ~/.cache/vlmpress.
        sole_writer: Nobody else writes to the bucket, so it need not hold conditions on writes.
        cache_bytes: Of artifacts kept on this machine beside those in use, the longest unused going first; None: as
            the folder's file says, else without a bound.
        lease_s: How long after it was last resolved this process uses an artifact; infinity: as long as it lives.
        writable: Find out now whether the bucket holds them; False for who only reads.

    Raises:
        InvalidRequestError: A URL of another kind, or a file `store.url` that says something else.
        ExtraMissingError: obstore is not installed.
        RemoteStoreError: The bucket ignores conditions, or cannot be reached.
    """
    if not is_remote(location):
        folder = Path(location)
        if not (folder / URL_FILE).is_file():
            return LocalStore(folder)
        location, *more = (folder / URL_FILE).read_text(encoding="utf-8").splitlines() or [""]
        root, sole_writer = root or folder, sole_writer or SOLE_WRITER in more
    url = str(location).rstrip("/")
    if url.partition("://")[0] not in SCHEMES:
        raise InvalidRequestError(f"store: expected a folder, s3://... or gs://..., got {url[:160]!r}")
    try:
        from obstore.store import from_url

        from vlmpress_services.store.objects import ObjectStore
        from vlmpress_services.store.remote import Bucket
    except ImportError as error:
        raise ExtraMissingError(
            "store: obstore is not installed; pip install 'vlmpress-services[objectstore]'"
        ) from error
    bucket = Bucket(from_url(url), sole_writer=sole_writer)
    root = root or _cache_folder(url)
    cache_bytes = _known_bound(root / URL_FILE) if cache_bytes is None else cache_bytes
    if writable:
        bucket.probe()
        _name_bucket(root, url, sole_writer, cache_bytes)
    return ObjectStore(bucket, root, cache_bytes=cache_bytes, lease_s=lease_s)


def _known_bound(file: Path) -> int | None:
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    given = next((line.removeprefix(CACHE_BYTES) for line in lines if line.startswith(CACHE_BYTES)), None)
    if given is not None and not (given.isascii() and given.isdigit()):
        raise InvalidRequestError(f"{file}: expected {CACHE_BYTES!r} and a whole number, got {given[:80]!r}")
    return None if given is None else int(given)


def _name_bucket(root: Path, url: str, sole_writer: bool, cache_bytes: int | None) -> None:
    """Lets whoever is told of the folder alone, a job's worker for one, find the bucket."""
    lines = [
        url,
        *([SOLE_WRITER] if sole_writer else []),
        *([] if cache_bytes is None else [f"{CACHE_BYTES}{cache_bytes}"]),
    ]
    text = "".join(f"{line}\n" for line in lines)
    if not (root / URL_FILE).is_file() or (root / URL_FILE).read_text(encoding="utf-8") != text:
        with whole_file(root / URL_FILE) as file:
            file.write(text.encode())


def _cache_folder(url: str) -> Path:
    base = os.environ.get("VLMPRESS_CACHE")
    folder = Path(base) if base else Path.home() / ".cache" / "vlmpress"
    return folder / hashlib.sha256(url.encode()).hexdigest()[:32]
