"""Encryption of a server's connections, with or without certificates of its clients."""

import ssl
import threading
from pathlib import Path
from typing import Any

import grpc

from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.serving.configuration import TlsConfig
from vlmpress_services.serving.reloading import Reloaded


def server_credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    """What a port needs for TLS; certificates that change hold from the next connection on.

    Raises:
        InvalidRequestError: A file is missing, is no PEM, or the key is not the certificate's.
    """
    paths = [path for path in (tls.cert, tls.key, tls.client_ca) if path is not None]
    files = Reloaded("certificates", paths, lambda: _configuration(tls))
    given, lock = files.get(), threading.Lock()

    def changed() -> Any:
        """What gRPC has not got yet, or None; in one of its threads, before each handshake."""
        nonlocal given
        with lock:  # each is given once: it is gRPC's from then on
            before, given = given, files.get()
            return None if given is before else given

    return grpc.dynamic_ssl_server_credentials(given, changed, require_client_authentication=tls.client_ca is not None)


def _configuration(tls: TlsConfig) -> grpc.ServerCertificateConfiguration:
    cert, key = _read("tls.cert", tls.cert), _read("tls.key", tls.key)
    client_ca = None if tls.client_ca is None else _read("tls.client_ca", tls.client_ca)
    _check(tls)
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)


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
