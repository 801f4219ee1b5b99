"""Tokens (JWT) that issuers have signed.

The signature is verified by PyJWT; the claims are checked here, because it takes a token without `exp`, or one whose
`exp` is a string, for a good one.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError

from famulus_server.engine.policy import Role
from famulus_server.identity.key_sets import Keys, KeySource
from famulus_server.identity.recent import Recent
from famulus_server.identity.rejection import KeysMissing, Rejected
from famulus_server.identity.settings import TENANT_PATTERN, Algorithm, IssuerSettings
from famulus_server.ports import Caller, Clock

_MOST_REMEMBERED = 10_000
_MOST_TOKEN_CHARACTERS = 8 * 1024  # above, gRPC itself begins to refuse metadata
_MOST_NAME_CHARACTERS = 256
_TENANT = re.compile(TENANT_PATTERN)
_ROLES = frozenset(get_args(Role))
_SIGNATURES = PyJWS(algorithms=get_args(Algorithm))
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class _Header(msgspec.Struct):
    alg: str
    kid: str


class _Addressed(msgspec.Struct):
    """What a token says before anything of it is believed."""

    iss: str


class _Registered(msgspec.Struct):
    iss: str
    aud: str | list[str]
    exp: float
    nbf: float = 0.0
    iat: float | None = None


@dataclass(frozen=True, slots=True)
class _Verified:
    """A token whose signature was verified with one of `keys`."""

    caller: Caller
    source: KeySource
    keys: Keys


class Tokens:
    """Knows callers by their tokens."""

    def __init__(self, issuers: Mapping[str, tuple[IssuerSettings, KeySource]], *, clock: Clock) -> None:
        """Issuers are found by what their tokens call them."""
        self._issuers = issuers
        self._clock = clock
        self._recent: Recent[_Verified] = Recent(most=_MOST_REMEMBERED)

    async def caller(self, token: str) -> Caller:
        """Whose token it is. Raises Rejected or KeysMissing."""
        if len(token) > _MOST_TOKEN_CHARACTERS:
            raise Rejected("the token is too long")
        digest = hashlib.sha256(token.encode()).digest()
        known = self._recent.get(digest)
        # With the same keys still: what a withdrawn one has signed is worth nothing from then on.
        if known is None or known.source.current() is not known.keys:
            known = await self._verify(token)
            self._recent.keep(digest, known)
        if known.caller.expire_time is not None and known.caller.expire_time <= self._clock.now().timestamp():
            raise Rejected("the token has expired")
        return known.caller

    async def _verify(self, token: str) -> _Verified:
        header, addressed = _parts(token)
        found = self._issuers.get(addressed.iss)
        if found is None:
            raise Rejected("no such issuer")
        issuer, source = found
        if header.alg not in issuer.algorithms:
            raise Rejected("the issuer has no such algorithm")
        keys = source.current()
        if keys is None or header.kid not in keys:
            await source.refresh()
            keys = source.current()
        if keys is None:
            raise KeysMissing(issuer.issuer)
        key = keys.get(header.kid)
        if key is None:
            raise Rejected("the issuer has no such key")
        try:
            # PyJWT holds the key's own algorithm against the one that the token names.
            payload = _SIGNATURES.decode(token, key, algorithms=[key.algorithm_name])
        except (PyJWTError, *_UNREADABLE) as error:
            raise Rejected(f"the signature is wrong ({type(error).__name__})") from None
        return _Verified(self._read(payload, issuer), source, keys)

    def _read(self, payload: bytes, issuer: IssuerSettings) -> Caller:
        """The caller that a verified payload speaks of."""
        try:
            claims = msgspec.json.decode(payload, type=dict[str, Any])
            said = msgspec.convert(claims, _Registered)
        except _UNREADABLE:
            raise Rejected("iss, aud, exp, nbf or iat is missing or of the wrong type") from None
        if said.iss != issuer.issuer:
            raise Rejected("the token is of another issuer")
        if issuer.audience not in ([said.aud] if isinstance(said.aud, str) else said.aud):
            raise Rejected("the token is for another audience")
        now = self._clock.now().timestamp()
        if max(said.nbf, said.iat or 0) > now + issuer.leeway:
            raise Rejected("the token is not valid yet")
        if issuer.max_lifetime is not None and (said.iat is None or said.exp - said.iat > issuer.max_lifetime):
            raise Rejected("the token lives too long, or does not say since when")
        tenant, name = claims.get(issuer.tenant_claim), claims.get(issuer.name_claim)
        if not isinstance(tenant, str) or not _TENANT.search(tenant):
            raise Rejected("the claim of the tenant is missing or wrong")
        if issuer.tenants and tenant not in issuer.tenants:
            raise Rejected("the issuer does not speak for this tenant")
        if not isinstance(name, str) or not 0 < len(name) <= _MOST_NAME_CHARACTERS or not name.isprintable():
            raise Rejected("the claim of the name is missing or wrong")
        roles = claims.get(issuer.roles_claim, [])
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise Rejected("the claim of the roles is no list of strings")
        # An issuer may have roles for others, too.
        return Caller(tenant, name, _ROLES.intersection(roles), said.exp + issuer.leeway)


def _parts(token: str) -> tuple[_Header, _Addressed]:
    """What a token says of itself: by whom it was signed, and with which key."""
    try:
        header, payload, _ = token.split(".")
        return (
            msgspec.json.decode(_bytes(header), type=_Header),
            msgspec.json.decode(_bytes(payload), type=_Addressed),
        )
    except _UNREADABLE:
        raise Rejected("no token, or one without alg, kid or iss") from None


def _bytes(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
