"""Encryption of a server's connections, with or without certificates of its clients."""

import ssl
from pathlib import Path

import grpc

from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.serving.configuration import TlsConfig


def server_credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    """What a port needs for TLS.

    Raises:
        InvalidRequestError: A file is missing, is no PEM, or the key is not the certificate's.
    """
    cert, key = _read("tls.cert", tls.cert), _read("tls.key", tls.key)
    client_ca = None if tls.client_ca is None else _read("tls.client_ca", tls.client_ca)
    _check(tls)
    return grpc.ssl_server_credentials(
        [(key, cert)], root_certificates=client_ca, require_client_auth=client_ca is not None
    )


def _check(tls: TlsConfig) -> None:
    # gRPC itself says nothing of bad files: the port only refuses every handshake.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password: without one OpenSSL asks at the terminal for that of an encrypted key.
        context.load_cert_chain(tls.cert, tls.key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise InvalidRequestError(
            f"tls: expected a PEM certificate and its unencrypted key, got {tls.cert} and {tls.key} ({error})"
        ) from error
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except (ssl.SSLError, ValueError) as error:
            raise InvalidRequestError(
                f"tls.client_ca: expected PEM certificates, got {tls.client_ca} ({error})"
            ) from error


def _read(field: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{field}: expected a readable file, got {error}") from error
