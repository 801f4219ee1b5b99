"""What settings mean for those who call, and what of them is perhaps not meant."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from famulus_server.config import Settings
from famulus_server.identity.settings import CertificateSettings, IssuerSettings, KeySettings

_INDENT = "    "


def explain_callers(settings: Settings) -> Iterator[str]:
    """Who may call, how, and what each of them may do; a line each."""
    auth, tls = settings.auth, settings.tls
    yield f"TLS, with the certificate in {tls.cert_file}." if tls.cert_file else "No TLS."
    if tls.client_ca_file:
        yield f"Every client needs a certificate that the CA in {tls.client_ca_file} has signed."
    if settings.server.health_listen:
        yield f"Health can also be asked for at {settings.server.health_listen}, without TLS."
    if not auth.configured:
        yield "Everybody who reaches the server is one caller, of the tenant default, and may do everything."
        return
    if auth.open_reflection:
        yield "Everybody may ask which methods there are."
    for issuer in auth.issuers:
        yield from _issuer(issuer)
    for key in auth.keys:
        yield f"{key.name}, by a static key: tenant {key.tenant}, {_roles(key.roles)}"
    for rule in auth.certificates:
        yield f"{rule.name}, by a certificate for {rule.spiffe or rule.dns}: tenant {rule.tenant}, {_roles(rule.roles)}"


def _issuer(issuer: IssuerSettings) -> Iterator[str]:
    keys = issuer.jwks_url or issuer.jwks_file
    yield f"Tokens of {issuer.issuer} for {issuer.audience}, signed with {' or '.join(issuer.algorithms)}; keys: {keys}"
    yield (
        f"{_INDENT}claims: tenant in {issuer.tenant_claim}, name in {issuer.name_claim}, roles in {issuer.roles_claim}"
    )
    yield f"{_INDENT}speaks for {', '.join(issuer.tenants) or 'any tenant'}"


def find_warnings_of_callers(settings: Settings) -> Iterator[str]:
    """Each in a line of its own."""
    auth, tls = settings.auth, settings.tls
    if tls.cert_file and not settings.server.health_listen:
        yield "[server] health_listen: probes that speak no TLS, as those of Kubernetes, cannot ask for health"
    if auth.plaintext and tls.cert_file:
        yield "[auth] plaintext: means nothing with TLS"
    if tls.client_ca_file and not auth.configured:
        yield "[tls] client_ca_file: all clients with a certificate are one caller, because [auth] has no rule for them"
    for issuer in auth.issuers:
        if len(auth.issuers) > 1 and not issuer.tenants:
            yield f"[auth] issuers: {issuer.issuer} may speak for any tenant, also for those of other issuers"
        if issuer.max_lifetime is None:
            yield f"[auth] issuers: {issuer.issuer} has no max_lifetime: a token is good for as long as it says"
        if issuer.jwks_file:
            yield from _about_key_set(issuer.jwks_file)
    ones: tuple[KeySettings | CertificateSettings, ...] = (*auth.keys, *auth.certificates)
    for one in ones:
        if not one.roles:
            yield f"[auth] {one.name}: has no role, and may do nothing"


def _about_key_set(file: str) -> Iterator[str]:
    from famulus_server.identity.key_sets import KeySetUnusable, read_keys  # here, because it takes long to import

    try:
        read_keys(Path(file).expanduser().read_bytes())
    except (OSError, KeySetUnusable) as error:
        why = error.strerror if isinstance(error, OSError) else error
        yield f"[[auth.issuers]] jwks_file: {file}: {why}; until there are keys, calls with tokens are UNAVAILABLE"


def _roles(roles: Collection[str]) -> str:
    return f"{'role' if len(roles) == 1 else 'roles'} {', '.join(roles)}" if roles else "no role"
