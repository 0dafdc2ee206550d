"""Stores by where they are."""

import hashlib
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


def is_remote(location: str | Path) -> bool:
    """Whether this is a URL and not a folder."""
    return _URL.fullmatch(str(location)) is not None


def open_store(
    location: str | Path, *, root: Path | None = None, sole_writer: bool = False, writable: bool = True
) -> ArtifactStore:
    """The store in a folder, or in a bucket: s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.

    A folder with a file `store.url` that holds such a URL (and, in a line of its own, "sole writer" where that is so)
    is this machine's side of a bucket: artifacts and tags are there, jobs and what is fetched here. So a server, its
    jobs and commands find the bucket by one path; who opens a URL to write leaves the file. A bucket's credentials,
    region and endpoint come from the environment (AWS_*, GOOGLE_*).

    Args:
        location: Folder or URL.
        root: Folder of this machine for what a remote store keeps here; None: one of its own under
            VLMPRESS_CACHE, by default ~/.cache/vlmpress.
        sole_writer: Nobody else writes to the bucket, so it need not hold conditions on writes.
        writable: Find out now whether the bucket holds them; False for who only reads.

    Raises:
        InvalidRequestError: A URL of another kind.
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
    if writable:
        bucket.probe()
        _name_bucket(root, url, sole_writer)
    return ObjectStore(bucket, root)


def _name_bucket(root: Path, url: str, sole_writer: bool) -> None:
    """Lets whoever is told of the folder alone, a job's worker for one, find the bucket."""
    text = f"{url}\n{SOLE_WRITER}\n" if sole_writer else f"{url}\n"
    if not (root / URL_FILE).is_file() or (root / URL_FILE).read_text(encoding="utf-8") != text:
        with whole_file(root / URL_FILE) as file:
            file.write(text.encode())


def _cache_folder(url: str) -> Path:
    base = os.environ.get("VLMPRESS_CACHE")
    folder = Path(base) if base else Path.home() / ".cache" / "vlmpress"
    return folder / hashlib.sha256(url.encode()).hexdigest()[:32]
