"""TLS with certificates that may be replaced while the server runs."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import structlog

from famulus_server.api.addresses import ListenError
from famulus_server.api.settings import TlsSettings

_log = structlog.get_logger()
_LOOK_SECONDS = 1.0


class ServerCertificates:
    """What the server shows to new connections: what the files have now."""

    def __init__(self, settings: TlsSettings, *, stopwatch: Callable[[], float] = time.monotonic) -> None:
        """Raises ListenError where the files cannot be used."""
        self._chain = Path(settings.cert_file).expanduser()
        self._key = Path(settings.key_file).expanduser()
        self._client_ca = Path(settings.client_ca_file).expanduser() if settings.client_ca_file else None
        self._stopwatch = stopwatch
        # gRPC asks from threads of its own.
        self._lock = threading.Lock()
        self._next_look = stopwatch() + _LOOK_SECONDS
        try:
            self._seen = self._states()
            self._first = self._read()
        except (OSError, ValueError) as error:
            raise ListenError(f"TLS: {_words(error)}") from None

    def credentials(self) -> grpc.ServerCredentials:
        """For the port to listen on."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._fetch,  # type: ignore[arg-type] # None is allowed: nothing new
            require_client_authentication=self._client_ca is not None,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What is new, for each new connection; None: nothing. Files that are wrong change nothing."""
        with self._lock:
            now = self._stopwatch()
            if now < self._next_look:
                return None
            self._next_look = now + _LOOK_SECONDS
            try:
                seen = self._states()
                if seen == self._seen:
                    return None
                self._seen = seen
                fresh = self._read()
            except (OSError, ValueError) as error:
                _log.error("certificates not reloaded", reason=_words(error))
                return None
            _log.info("certificates reloaded", file=str(self._chain))
            return fresh

    def _read(self) -> grpc.ServerCertificateConfiguration:
        chain, key = self._chain.read_bytes(), self._key.read_bytes()
        check_pair(chain, key)
        roots = self._client_ca.read_bytes() if self._client_ca else None
        if roots is not None:
            check_roots(roots)
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)

    def _states(self) -> list[tuple[int, int, int, int]]:
        files = (self._chain, self._key, self._client_ca)
        found = [os.stat(file) for file in files if file is not None]  # noqa: PTH116 - of each file one call
        # The last one is also that of their permissions: what could not be read may become readable.
        return [(one.st_mtime_ns, one.st_size, one.st_ino, one.st_ctime_ns) for one in found]


def check_pair(chain: bytes, key: bytes) -> None:
    """Raises ValueError unless the key is that of the first certificate: gRPC would find out with each client, and
    half of a replacement may be there already while the other half is not."""
    from cryptography import x509  # here, because only servers with TLS need it
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certified = x509.load_pem_x509_certificate(chain).public_key()
        own = load_pem_private_key(key, None).public_key()
    except UnsupportedAlgorithm as error:
        raise ValueError("the certificate or the key is of a kind that is not supported") from error
    except (ValueError, TypeError) as error:
        raise ValueError("the certificate or the key is no PEM, or the key has a password") from error
    if certified != own:
        raise ValueError("the key is not the certificate's")


def check_roots(roots: bytes) -> None:
    """Raises ValueError unless these are certificates: gRPC would take it for a CA that signs nobody."""
    from cryptography import x509  # as above

    try:
        x509.load_pem_x509_certificates(roots)
    except ValueError as error:
        raise ValueError("the certificates of the clients' CA are no PEM") from error


def _words(error: Exception) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
