"""What callers are known by: the server's certificate, and the keys of those who sign tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from famulus_server.cli.diagnosis.findings import Finding, fail, ok, warn

if TYPE_CHECKING:
    from famulus_server.api.settings import TlsSettings
    from famulus_server.identity.settings import IssuerSettings

_FEW_DAYS = 14


async def check_certificates(tls: TlsSettings) -> Sequence[Finding]:
    """How long they are good for, and who may read the key. Whether they fit together is a matter of the settings."""
    return await asyncio.to_thread(lambda: list(_certificates(tls)))


async def check_issuer(issuer: IssuerSettings) -> Sequence[Finding]:
    """Whether its keys can be had."""
    from famulus_server.cli.config_explanation import without_password
    from famulus_server.identity.key_sets import KeySetUnusable, fetch_keys, read_keys

    where = without_password(issuer.jwks_url) if issuer.jwks_url else issuer.jwks_file
    try:
        if issuer.jwks_url:
            keys = await fetch_keys(issuer.jwks_url)
        else:
            keys = read_keys(await asyncio.to_thread(lambda: Path(issuer.jwks_file).expanduser().read_bytes()))
    except (OSError, KeySetUnusable) as error:
        why = error.strerror if isinstance(error, OSError) else error
        return [fail("", f"{where}: {why}", "Until there are keys, calls with its tokens are UNAVAILABLE.")]
    return [ok("", f"{where}: {len(keys)} keys")]


def _certificates(tls: TlsSettings) -> Iterator[Finding]:
    for point, file in (("", tls.cert_file), ("clients' CA", tls.client_ca_file)):
        if file:
            yield _of_certificate(point, Path(file).expanduser())
    from famulus_server.encryption.key_sources import is_exposed

    if is_exposed(Path(tls.key_file).expanduser()):
        yield warn("key", f"others than its owner may read {tls.key_file}", f"chmod 600 {tls.key_file}")


def _of_certificate(point: str, file: Path) -> Finding:
    from cryptography import x509

    try:
        until = min(one.not_valid_after_utc for one in x509.load_pem_x509_certificates(file.read_bytes()))
    except (OSError, ValueError):
        return fail(point, f"{file} cannot be read as certificates", "Give a file in PEM.")
    days = (until - datetime.now(UTC)).days
    seen = f"{file}: good until {until:%Y-%m-%d %H:%M} UTC"
    remedy = "Put a new one in its place: a running server takes it over by itself."
    if until <= datetime.now(UTC):
        return fail(point, f"{file}: ran out on {until:%Y-%m-%d %H:%M} UTC", remedy)
    return warn(point, f"{seen}, {days} days from now", remedy) if days < _FEW_DAYS else ok(point, seen)
