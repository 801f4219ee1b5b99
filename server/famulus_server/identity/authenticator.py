"""Joins all ways in which callers show who they are."""

import asyncio
from pathlib import Path

import structlog

from famulus.v1 import error_reason_pb2 as reasons
from famulus_server.errors import Unauthenticated, Unavailable
from famulus_server.identity.certificates import Certificates
from famulus_server.identity.key_sets import KeyFile, KeySource, KeyUrl
from famulus_server.identity.rejection import KeysMissing, Rejected
from famulus_server.identity.settings import KEY_PREFIX, AuthSettings, IssuerSettings
from famulus_server.identity.static_keys import StaticKeys
from famulus_server.identity.tokens import Tokens
from famulus_server.ports import Caller, Clock, Credentials

_log = structlog.get_logger()
_SCHEME = "bearer"
_RETRY_SECONDS = 5.0


class KnownCallers:
    """The Authenticator of the settings, which may be exchanged at any time."""

    def __init__(self, settings: AuthSettings, *, clock: Clock) -> None:
        self._clock = clock
        self._sources: dict[str, KeySource] = {}  # by the places of their keys
        self._retired: set[asyncio.Task[None]] = set()
        self._settings = settings

    async def open(self) -> None:
        """Returns once each issuer was asked for its keys; whether it answered is another matter."""
        self.exchange(self._settings)
        await asyncio.gather(*(source.refresh() for source in self._sources.values()))

    async def close(self) -> None:
        """Asks nobody any more."""
        await asyncio.gather(*(source.close() for source in self._sources.values()), *self._retired)

    def exchange(self, settings: AuthSettings) -> None:
        """From now on these hold. Keys that come from where they came before need not be fetched again."""
        before, self._sources = self._sources, {}
        for issuer in settings.issuers:
            place = _place(issuer)
            self._sources[place] = self._sources.get(place) or before.get(place) or _opened(issuer)
        for gone in before.keys() - self._sources.keys():
            task = asyncio.create_task(before[gone].close())
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)
        self._tokens = Tokens(
            {issuer.issuer: (issuer, self._sources[_place(issuer)]) for issuer in settings.issuers}, clock=self._clock
        )
        self._keys = StaticKeys(settings.keys)
        self._certificates = Certificates(settings.certificates, clock=self._clock)

    async def authenticate(self, credentials: Credentials) -> Caller:
        """As the port says. A token or key comes before the certificate of its connection, and if it is wrong the
        certificate does not help."""
        try:
            while True:
                tokens, caller = self._tokens, await self._find(credentials)
                # Otherwise the settings were exchanged while keys were fetched: what held before does not count.
                if tokens is self._tokens:
                    return caller
        except Rejected as rejected:
            _log.info("caller refused", reason=str(rejected))
        except KeysMissing as missing:
            _log.warning("caller not known, for lack of keys", issuer=str(missing))
            raise Unavailable(
                reasons.ERROR_REASON_SERVER_OVERLOADED,
                "callers cannot be verified at the moment: call again later",
                retry_after=_RETRY_SECONDS,
            ) from None
        raise Unauthenticated(reasons.ERROR_REASON_UNAUTHENTICATED, "no valid credentials")

    async def _find(self, credentials: Credentials) -> Caller:
        if len(credentials.authorizations) > 1:
            raise Rejected("several authorization headers")
        if not credentials.authorizations:
            if not credentials.certificate:
                raise Rejected("no credentials")
            return self._certificates.caller(credentials.certificate)
        scheme, _, token = credentials.authorizations[0].partition(" ")
        if scheme.lower() != _SCHEME or not token:
            raise Rejected("no bearer token")
        return self._keys.caller(token) if token.startswith(KEY_PREFIX) else await self._tokens.caller(token)


def _place(issuer: IssuerSettings) -> str:
    return issuer.jwks_url or issuer.jwks_file


def _opened(issuer: IssuerSettings) -> KeySource:
    source: KeySource = KeyFile(Path(issuer.jwks_file).expanduser()) if issuer.jwks_file else KeyUrl(issuer.jwks_url)
    source.open()
    return source
