from pathlib import Path

import pytest

from vlmpress_services.clients import Connection, find_connection
from vlmpress_services.errors import InvalidRequestError


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":5", "host:port", "http://host:5", "host/path:5", "https://host"]
)
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^server: expected HOST:PORT or https://HOST:PORT, got"):
        Connection(address=address)


def test_tls_is_asked_for_by_scheme_authority_or_certificate() -> None:
    pem = Path("pem")
    assert not Connection(address="host:5").is_encrypted
    assert Connection(address="https://host:5").is_encrypted
    assert Connection(address="host:5", ca=pem).is_encrypted
    assert Connection(address="host:5", cert=pem, key=pem).is_encrypted
    assert Connection(address="https://host:5").target == "host:5"


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(InvalidRequestError, match=r"^cert: expected a key beside it"):
        Connection(address="host:5", cert=Path("pem"))
    with pytest.raises(InvalidRequestError, match=r"^key: expected a cert beside it"):
        Connection(address="host:5", key=Path("pem"))


@pytest.mark.parametrize("address", ["localhost:5", "127.0.0.1:5", "127.8.0.1:5", "[::1]:5", "https://far.example:5"])
def test_a_token_goes_to_this_machine_or_over_tls(address: str) -> None:
    assert Connection(address=address, token="secret").token == "secret"


@pytest.mark.parametrize("address", ["far.example:5", "127.0.0.1.example:5", "localhost.example:5", "0.0.0.0:5"])
def test_a_token_never_goes_out_in_plain_text(address: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^token: expected TLS") as caught:
        Connection(address=address, token="secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["two words", "new\nline", "größe", "tab\t"])
def test_a_token_is_one_word(token: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^token: expected printable ASCII") as caught:
        Connection(address="localhost:5", token=token)
    assert token not in str(caught.value)


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Connection(address="localhost:5", token="secret"))


def test_what_is_not_given_comes_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    names = {name: str(tmp_path / name) for name in ("ca", "cert", "key")}
    environ = {f"VLMPRESS_{name.upper()}": path for name, path in names.items()}
    environ |= {"VLMPRESS_SERVER": "far.example:5", "VLMPRESS_TOKEN": "plain"}
    found = find_connection(environ=environ)
    assert found == Connection(
        address="far.example:5", token="plain", ca=tmp_path / "ca", cert=tmp_path / "cert", key=tmp_path / "key"
    )
    environ["VLMPRESS_TOKEN_FILE"] = str(tmp_path / "token")
    assert find_connection(environ=environ).token == "from-file"
    given = find_connection("near.example:6", ca=tmp_path / "other", environ=environ)
    assert (given.address, given.ca) == ("near.example:6", tmp_path / "other")


def test_without_an_address_nothing_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="VLMPRESS_SERVER"):
        find_connection(environ={})
    with pytest.raises(InvalidRequestError, match=r"^token: expected a file, got .*No such file"):
        find_connection("localhost:5", token_file=tmp_path / "none", environ={})
