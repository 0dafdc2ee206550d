"""A client in another language, which has the protos and nothing of ours."""

import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import google.rpc
import pytest
import trustme
import yaml

from vlmpress.artifact import create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.store.local import LocalStore

HERE = Path(__file__).resolve().parent
TOKEN = "the-token-of-node"
UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH")


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client and its modules."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(HERE / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if installed.returncode and any(code in installed.stderr for code in UNREACHABLE):
        pytest.skip("npm's registry cannot be reached")
    assert installed.returncode == 0, installed.stderr
    return folder


@pytest.fixture
def secured(tmp_path: Path, model_store: LocalStore, launch: Callable[..., Any]) -> Any:
    """A server with TLS that wants a token; `ca` is the file of its authority."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    expires = datetime.now(UTC) + timedelta(hours=1)
    token = {"name": "node", "sha256": hashlib.sha256(TOKEN.encode()).hexdigest(), "scopes": ["*"], "expires": expires}
    (tmp_path / "tokens.yaml").write_text(yaml.safe_dump([token]))
    config = {
        "tls": {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")},
        "tokens": str(tmp_path / "tokens.yaml"),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    services = ("--services", "artifact,evaluation,edgevlm")
    server = launch(model_store.root, "--config", str(tmp_path / "config.yaml"), *services)
    server.ca = tmp_path / "ca.pem"
    return server


def png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def ask(node: Path, task: dict[str, Any]) -> Any:
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        ["node", "client.js"],
        cwd=node,
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=120,
        env=environ,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_node_reaches_everything_from_the_protos_alone(
    node: Path, secured: Any, model_store: LocalStore, tmp_path: Path
) -> None:
    content = bytes(range(256)) * (5 << 11)  # 2.5 MiB: three chunks
    with create(tmp_path / "artifact") as draft:
        (draft.path / "large.bin").write_bytes(content)
        (draft.path / "empty").touch()
        artifact = draft.commit(artifact_pb2.Log(source="node"), producer=("test", "1"))
    (tmp_path / "image.png").write_bytes(png())
    task = {
        # By name: Node warns of numbers in TLS.
        "address": secured.address.replace("127.0.0.1", "localhost"),
        "token": TOKEN,
        "ca": str(secured.ca),
        "protos": str(HERE.parent / "protos"),
        "googleProtos": str(Path(google.rpc.__path__[0]).parents[1]),
        "artifact": str(artifact.path),
        "file": "large.bin",
        "out": str(tmp_path / "read.bin"),
        "model": "tiny",
        "image": str(tmp_path / "image.png"),
    }
    came = ask(node, task)
    assert came["score"]["score"] == {"num_questions": 2, "accuracy": 0.5}
    refused = came["written"].pop("wrongChunk")
    assert refused["code"] == "DATA_LOSS"
    assert "CRC-32C" in refused["text"]
    assert came["written"] == {"digest": artifact.digest, "tags": ["from-node"], "sizeBytes": len(content)}
    assert model_store.tags()["from-node"] == artifact.digest
    assert (tmp_path / "read.bin").read_bytes() == content
    assert came["offsets"] == [0, 1 << 20, 2 << 20]
    answer = came["answer"]
    assert answer["text"] == answer["finish"]["text"]
    assert answer["finish"]["num_visual_tokens"] == 16
    assert answer["numEvents"] >= 2

    for name in ("absent", "absentFile"):
        assert came[name]["code"] == "NOT_FOUND"
        assert (came[name]["info"]["reason"], came[name]["info"]["domain"]) == ("NOT_FOUND", "vlmpress")
        assert came[name]["requestId"]
    assert came["noToken"]["code"] == "UNAUTHENTICATED"
    assert came["noToken"]["info"]["reason"] == "UNAUTHENTICATED"
    assert came["plainText"]["code"] == "UNAVAILABLE"

    # Once it is there nothing is sent again.
    assert ask(node, task)["written"]["digest"] == artifact.digest
