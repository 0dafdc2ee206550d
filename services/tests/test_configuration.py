"""Where a server's configuration comes from, and what is wrong with it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.serving.config_sources import load_config, shown
from vlmpress_services.serving.configuration import MethodConfig, ServerConfig
from vlmpress_services.serving.methods import SERVICES, methods_of

EVALUATION = {"services": "evaluation"}


def written(folder: Path, fields: Any) -> Path:
    path = folder / "server.yaml"
    path.write_text(fields if isinstance(fields, str) else yaml.safe_dump(fields))
    return path


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, {"services": ["evaluation"], "max_concurrent": 1, "max_batch": 1, "max_models": 1})
    environment = {"VLMPRESS_MAX_CONCURRENT": "2", "VLMPRESS_MAX_BATCH": "2", "VLMPRESS_TOKEN": "a client's"}
    config = load_config({"max_concurrent": 3}, file, environment)
    assert (config.max_concurrent, config.max_batch, config.max_models) == (3, 2, 1)
    assert config.services == ("evaluation",)
    assert config.grace_s == 5.0


def test_all_services_are_the_default() -> None:
    assert load_config({}, None, {}).services == tuple(SERVICES)


def test_nested_fields_come_from_everywhere(tmp_path: Path) -> None:
    file = written(tmp_path, {"images": {"max_images": 3}, "methods": {"edgevlm.Generate": {"max_concurrent": 5}}})
    environment = {
        "VLMPRESS_IMAGES__MAX_PIXELS": "100",
        "VLMPRESS_METHODS": "{edgevlm.Generate: {max_timeout_s: 7}}",
        "VLMPRESS_REFLECTION": "false",
        "VLMPRESS_GRACE_S": "",
    }
    config = load_config(EVALUATION, file, environment)
    assert (config.images.max_images, config.images.max_pixels) == (3, 100)
    assert config.methods["edgevlm.Generate"] == MethodConfig(max_concurrent=5, max_timeout_s=7)
    assert config.methods["job.WatchJob"].max_timeout_s == 0
    assert config.reflection is False


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_concurrent": "many"}, "max_concurrent: Input should be a valid integer"),
        ({"max_concurrent": 0}, "max_concurrent: expected at least 1, got 0"),
        ({"grace_s": -1}, "grace_s: expected at least 0, got -1"),
        ({"grace_s": float("nan")}, "grace_s: expected at least 0, got nan"),
        ({"nothing": 1}, "nothing: Unexpected keyword argument, got 1"),
        ({"images": {"max_image": 1}}, "images.max_image: Unexpected keyword argument, got 1"),
        ({"tls": {"cert": "a"}}, "tls.key: Field required"),
        ({"methods": {"edgevlm.Nothing": {}}}, "expected names like edgevlm.Generate, got 'edgevlm.Nothing'"),
        ({"methods": {"nothing.Generate": {}}}, "expected names like edgevlm.Generate, got 'nothing.Generate'"),
        ({"methods": {"edgevlm.Generate": {"max_concurrent": 0}}}, "max_concurrent: expected at least 1, got 0"),
        ({"methods": {"edgevlm.Generate": {"nothing": 0}}}, "methods.edgevlm.Generate.nothing"),
        ({"services": ["nothing"]}, "got 'nothing'"),
        ({"services": 3}, "expected all or some of"),
        ({"metrics": "here"}, "metrics: expected HOST:PORT, got 'here'"),
        ({"jobs": {"runner": "ray"}}, "jobs.cluster: expected an address with jobs.runner ray, got none"),
        ({"jobs": {"runner": "moon"}}, "jobs.runner: Input should be 'local' or 'ray', got 'moon'"),
        ({"listen": "0.0.0.0:80"}, "expected tls with tokens or a client_ca, or insecure"),
        ({"log_format": "xml"}, "log_format: Input should be 'json' or 'text', got 'xml'"),
        ([1], "expected fields of a server's configuration, got list"),
        ("{a", "expected YAML"),
    ],
)
def test_a_fault_of_a_file_names_file_field_and_value(tmp_path: Path, fields: Any, expected: str) -> None:
    file = written(tmp_path, fields)
    with pytest.raises(InvalidRequestError) as caught:
        load_config({"store": tmp_path} if "services" in str(fields) else {"store": tmp_path, **EVALUATION}, file, {})
    assert expected in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_fault_names_the_source_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"^environment: max_batch: .* got 'x'$"):
        load_config(EVALUATION, None, {"VLMPRESS_MAX_BATCH": "x"})
    with pytest.raises(InvalidRequestError, match=r"^flags: listen: expected HOST:PORT, got 'x'$"):
        load_config({**EVALUATION, "listen": "x"}, written(tmp_path, {}), {})
    with pytest.raises(InvalidRequestError, match="VLMPRESS_METHODS: expected YAML"):
        load_config(EVALUATION, None, {"VLMPRESS_METHODS": "{"})
    with pytest.raises(InvalidRequestError, match=r"none\.yaml: expected a readable YAML file"):
        load_config(EVALUATION, tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    ("host", "is_loopback"), [("127.0.0.1", True), ("127.9.9.9", True), ("[::1]", True), ("localhost", True),
                              ("0.0.0.0", False), ("[::]", False), ("example.org", False)]
)  # fmt: skip
def test_only_this_machine_may_call_without_access_control(tmp_path: Path, host: str, is_loopback: bool) -> None:
    fields: dict[str, Any] = {"listen": f"{host}:1", "store": tmp_path, "services": ("evaluation",)}
    assert ServerConfig(**fields, insecure=True).is_loopback is is_loopback
    if not is_loopback:
        with pytest.raises(InvalidRequestError, match="insecure"):
            ServerConfig(**fields, tokens=tmp_path / "tokens without encryption")


def test_what_is_shown_is_a_file_that_says_the_same(tmp_path: Path) -> None:
    jobs = {"runner": "ray", "cluster": "http://me:secret@head:8265"}
    config = load_config({"store": str(tmp_path), **EVALUATION, "jobs": jobs, "metrics": "9464"}, None, {})
    text = shown(config)
    assert "secret" not in text
    assert config.metrics_address == "127.0.0.1:9464"
    again = load_config({"jobs": jobs}, written(tmp_path, text), {})
    assert again == config


def test_the_protos_say_which_methods_only_read() -> None:
    read_only = {method.name: method.is_read_only for method in methods_of(SERVICES).values()}
    assert read_only["edgevlm.Generate"]
    assert read_only["quantpack.Verify"]
    assert read_only["artifact.ReadFile"]
    assert not read_only["job.CreateJob"]
    assert not read_only["artifact.WriteFile"]


def vlmpress(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vlmpress_services.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_check_config_shows_what_would_hold_or_what_is_wrong(tmp_path: Path) -> None:
    written(tmp_path, {"services": "evaluation", "tokens": "tokens.yaml"})
    for option in ("--check-config", "--quiet"):
        done = vlmpress(tmp_path, "serve", "--config", "server.yaml", option)
        assert done.returncode == 2
        assert done.stderr.startswith("error: tokens.yaml: expected a readable file of tokens")
    (tmp_path / "tokens.yaml").write_text("[]")
    done = vlmpress(tmp_path, "serve", "--config", "server.yaml", "--check-config", "--max-batch", "7")
    assert done.returncode == 0, done.stderr
    held = yaml.safe_load(done.stdout)
    assert (held["max_batch"], held["services"], held["tokens"]) == (7, ["evaluation"], "tokens.yaml")
    assert not (tmp_path / "build").exists()


def test_every_flag_reaches_the_server(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "server.key")
    authority.cert_pem.write_to_path(tmp_path / "clients.pem")
    (tmp_path / "tokens.yaml").write_text("[]")
    flags = {
        "listen": "127.0.0.1:4444",
        "store": "elsewhere",
        "services": "evaluation",
        "max-concurrent": "3",
        "max-batch": "5",
        "tls-cert": "server.pem",
        "tls-key": "server.key",
        "client-ca": "clients.pem",
        "tokens": "tokens.yaml",
        "metrics": "9999",
        "log-format": "text",
        "grace-s": "7.5",
    }
    options = [part for name, value in flags.items() for part in (f"--{name}", value)]
    done = vlmpress(tmp_path, "serve", "--check-config", *options, "--insecure", "--reflection")
    assert done.returncode == 0, done.stderr
    held = yaml.safe_load(done.stdout)
    tls = {"cert": "server.pem", "key": "server.key", "client_ca": "clients.pem"}
    expected = {"tls": tls, "insecure": True, "reflection": True, "services": ["evaluation"]}
    expected |= {"listen": "127.0.0.1:4444", "store": "elsewhere", "max_concurrent": 3, "max_batch": 5}
    expected |= {"tokens": "tokens.yaml", "metrics": "9999", "log_format": "text", "grace_s": 7.5}
    assert {name: held[name] for name in expected} == expected


def test_the_documented_configuration_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in text.split("```yaml\n")[1:]]
    (block,) = [block for block in blocks if "max_concurrent" in block]
    file = tmp_path / "server.yaml"
    file.write_text(block)
    config = load_config({}, file, {})
    assert config.metrics_address == "127.0.0.1:9464"
    assert config.max_concurrent_of("edgevlm.Generate") == 32
