"""Conditions on writes as GCS takes them, by generation, on a small server that holds them as GCS says it does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vlmpress_services.errors import RemoteStoreError

pytest.importorskip("obstore")
HTTP_DATE = "Mon, 02 Nov 2026 08:00:00 GMT"


class Objects(BaseHTTPRequestHandler):
    """Objects by path, each with its generation; an entity tag is not enough to write over one."""

    objects: dict[str, tuple[int, bytes]]
    holds = True

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        generation, _ = self.objects.get(self.path, (0, b""))
        wanted = self.headers["x-goog-if-generation-match"]
        if self.holds and wanted is not None and int(wanted) != generation:
            return self._answer(412)
        self.objects[self.path] = (generation + 1000, data)
        return self._answer(200)

    def do_GET(self) -> None:
        found = self.objects.get(self.path)
        self._answer(404) if found is None else self._answer(200, found[1])

    def do_DELETE(self) -> None:
        self._answer(204 if self.objects.pop(self.path, None) else 404)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self, status: int, data: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(data)),
            "ETag": '"same"',
            "Last-Modified": HTTP_DATE,
            "x-goog-generation": str(self.objects.get(self.path, (0, b""))[0]),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[object]:
    """A bucket behind `Objects`, whose state `bucket.handler` holds."""
    from obstore.store import GCSStore

    from vlmpress_services.store.remote import Bucket

    handler = type("Handler", (Objects,), {"objects": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    account = {
        "gcs_base_url": f"http://127.0.0.1:{server.server_port}",
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    remote = GCSStore(
        "bucket", service_account_key=json.dumps(account), client_options={"allow_http": True}, prefix="some/prefix"
    )
    opened = Bucket(remote)
    opened.handler = handler  # type: ignore[attr-defined]
    yield opened
    server.shutdown()
    thread.join()
    server.server_close()


def test_generations_are_conditions(bucket) -> None:  # type: ignore[no-untyped-def]
    bucket.probe()
    assert bucket.handler.objects == {}
    assert [bucket.create("a", b"1"), bucket.create("a", b"2")] == [True, False]
    _, version = bucket.get_version("a")
    assert bucket.swap("a", b"3", version)
    assert not bucket.swap("a", b"4", version)
    assert not bucket.swap("a", b"5", None)
    assert bucket.get("a") == b"3"
    assert bucket.swap("b", b"6", None)


def test_a_bucket_that_ignores_generations_is_refused(bucket) -> None:  # type: ignore[no-untyped-def]
    bucket.handler.holds = False
    with pytest.raises(RemoteStoreError, match="ignores them"):
        bucket.probe()
    assert bucket.handler.objects == {}
