"""What the configuration says of callers. `config/` fills these in, and checks them by `find_fault`."""

import hashlib
import ipaddress
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

from famulus_server.engine.policy import Role

Algorithm: TypeAlias = Literal["RS256", "ES256", "EdDSA"]
# Tenants end in keys of Redis, names of limits and log lines: nothing there has a meaning of its own.
TENANT_PATTERN = r"^[A-Za-z0-9._:-]{1,128}\Z"
Tenant = Annotated[str, msgspec.Meta(pattern=TENANT_PATTERN)]
CallerName = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,256}\Z")]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]

KEY_PREFIX = "fam_"


class IssuerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody who signs tokens (JWT), and how they are read. Times are in seconds."""

    issuer: Text
    audience: Text
    jwks_url: str = ""
    jwks_file: str = ""
    algorithms: Annotated[tuple[Algorithm, ...], msgspec.Meta(min_length=1)] = ("RS256", "ES256", "EdDSA")
    tenants: tuple[Tenant, ...] = ()  # whom it may speak for; empty: anybody
    tenant_claim: Text = "tenant"
    name_claim: Text = "sub"
    roles_claim: Text = "roles"
    leeway: Annotated[float, msgspec.Meta(ge=0, le=300)] = 30.0  # by how much our clocks may differ
    max_lifetime: Annotated[float, msgspec.Meta(gt=0)] | None = None  # of a token, from its issue to its end


class KeySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A static key. Only its hash stands here: a key is random, and cannot be found from it."""

    name: CallerName
    tenant: Tenant
    roles: tuple[Role, ...]
    sha256: Sha256


class CertificateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Clients whose certificate has this name: a SPIFFE id, whose last segment may be `*`, or a DNS name."""

    name: CallerName
    tenant: Tenant
    roles: tuple[Role, ...]
    spiffe: Annotated[str, msgspec.Meta(pattern=r"^$|^spiffe://[^/*]+(/[^/*]+)*(/\*)?\Z")] = ""
    dns: Annotated[str, msgspec.Meta(pattern=r"^$|^[A-Za-z0-9.-]+\Z")] = ""


class AuthSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[auth]`: who may call, and do what."""

    plaintext: bool = False  # whether tokens may come over a network unencrypted, as where a mesh encrypts
    open_reflection: bool = False  # whether anybody may ask which methods there are
    issuers: tuple[IssuerSettings, ...] = ()
    keys: tuple[KeySettings, ...] = ()
    certificates: tuple[CertificateSettings, ...] = ()

    @property
    def configured(self) -> bool:
        """Whether callers are asked who they are."""
        return bool(self.issuers or self.keys or self.certificates)


def hash_of_key(key: str) -> str:
    """What the settings have of a static key."""
    return hashlib.sha256(key.encode()).hexdigest()


def find_fault(settings: AuthSettings) -> tuple[str, str] | None:
    """Where and what is wrong that the types do not say. None: nothing."""
    for index, issuer in enumerate(settings.issuers):
        key = f"issuers[{index}]"
        if bool(issuer.jwks_url) == bool(issuer.jwks_file):
            return key, "needs one of jwks_url and jwks_file"
        if issuer.jwks_url and not is_safe_url(issuer.jwks_url):
            return f"{key}.jwks_url", "must be an https URL: whoever can change the answer can sign tokens"
    for index, certificate in enumerate(settings.certificates):
        if bool(certificate.spiffe) == bool(certificate.dns):
            return f"certificates[{index}]", "needs one of spiffe and dns"
    unique: Sequence[tuple[str, list[str]]] = (
        ("issuers", [one.issuer for one in settings.issuers]),
        ("keys", [one.name for one in settings.keys]),
        ("keys", [one.sha256 for one in settings.keys]),
        ("certificates", [one.spiffe or one.dns for one in settings.certificates]),
    )
    for where, values in unique:
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            return where, f"{twice!r} stands there twice"
    return None


def is_safe_url(url: str) -> bool:
    """Whether nobody in between can change what comes from there: https, or this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))


def is_loopback(host: str) -> bool:
    """Whether this is a name or an address of this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
