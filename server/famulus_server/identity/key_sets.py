"""The keys with which issuers sign tokens, as JSON Web Key Sets, from files or from URLs."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from famulus_server.identity.settings import is_loopback

_log = structlog.get_logger()

# By their ids. Never changed: another answer is another mapping.
Keys: TypeAlias = Mapping[str, PyJWK]

_LOOK_SECONDS = 1.0  # between two looks at a file
_RENEW_SECONDS = 600.0
_RETRY_SECONDS = 5.0  # while there are no keys at all
_REFRESH_SECONDS = 30.0  # between two fetches for key ids that nobody knows, which anybody can make up
_FETCH_SECONDS = 5.0
_MOST_BYTES = 1024 * 1024
_LEAST_RSA_BITS = 2_048
_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}


class KeySetUnusable(Exception):
    """What was read is no set of keys. The text is for the log."""


class KeySource(Protocol):
    """Where the keys of an issuer come from. One that fails keeps the keys it had."""

    def open(self) -> None:
        """Begins to follow what changes, inside an event loop."""

    def current(self) -> Keys | None:
        """The keys, None as long as they could never be had. The same mapping while they stay the same."""

    async def refresh(self) -> None:
        """Looks again, if it is time to: a token names a key that is not there."""

    async def close(self) -> None:
        """Ends what `open` began."""


class KeyFile:
    """Keys from a file that is read again when it changes."""

    def __init__(self, path: Path, *, stopwatch: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._stopwatch = stopwatch
        self._keys: Keys | None = None
        self._seen: tuple[int, ...] | None = ()
        self._next_look = 0.0

    def open(self) -> None:
        """Looks for the first time."""
        self._look()

    def current(self) -> Keys | None:
        """The keys as they were at most a second ago."""
        if self._stopwatch() >= self._next_look:
            self._look()
        return self._keys

    async def refresh(self) -> None:
        """A file is looked at often enough."""

    async def close(self) -> None:
        """There is nothing to end."""

    def _look(self) -> None:
        self._next_look = self._stopwatch() + _LOOK_SECONDS
        seen = _state_of(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            with self._path.open("rb") as file:
                self._keys = read_keys(file.read(_MOST_BYTES + 1))
            _log.info("keys of an issuer read", file=str(self._path), keys=len(self._keys))
        except (OSError, KeySetUnusable) as error:
            _log.warning("keys of an issuer not read", file=str(self._path), reason=_words(error))


class KeyUrl:
    """Keys that are fetched, and fetched again each ten minutes."""

    def __init__(self, url: str, *, stopwatch: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._stopwatch = stopwatch
        self._keys: Keys | None = None
        self._answer = b""
        self._following: asyncio.Task[None] | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._next_refresh = 0.0

    def open(self) -> None:
        """Begins with the first fetch."""
        self._fetch()
        self._following = asyncio.create_task(self._follow(), name="keys of an issuer")

    def current(self) -> Keys | None:
        """The keys as they came last."""
        return self._keys

    async def refresh(self) -> None:
        """Fetches them, at most once in half a minute; whoever comes meanwhile waits for the same answer."""
        if self._fetching is None or self._fetching.done():
            if self._stopwatch() < self._next_refresh:
                return
            self._next_refresh = self._stopwatch() + _REFRESH_SECONDS
        # Not for its result: it is cancelled when nobody needs it any more, and the call that waits is not.
        await asyncio.wait([self._fetch()])

    async def close(self) -> None:
        """Fetches no more."""
        tasks = [task for task in (self._following, self._fetching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            await asyncio.wait([self._fetch()])
            await asyncio.sleep(_RETRY_SECONDS if self._keys is None else _RENEW_SECONDS)

    def _fetch(self) -> "asyncio.Task[None]":
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_now())
        return self._fetching

    async def _fetch_now(self) -> None:
        import httpx2  # here, because it takes long to import, and many servers fetch no keys

        try:
            async with asyncio.timeout(_FETCH_SECONDS):
                answer = await _download(self._url)
            if answer == self._answer:
                return
            self._keys = read_keys(answer)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, KeySetUnusable) as error:
            _log.warning("keys of an issuer not fetched", url=self._url, reason=_words(error))
            return
        self._answer = answer
        _log.info("keys of an issuer fetched", url=self._url, keys=len(self._keys))


async def fetch_keys(url: str) -> Keys:
    """The public keys that are there now. Raises KeySetUnusable."""
    import httpx2  # as above

    try:
        async with asyncio.timeout(_FETCH_SECONDS):
            return read_keys(await _download(url))
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise KeySetUnusable(f"no answer ({_words(error)})") from error


def read_keys(data: bytes) -> Keys:
    """The public keys of a key set that can be used here. Raises KeySetUnusable."""
    if len(data) > _MOST_BYTES:
        raise KeySetUnusable("it is larger than 1 MiB")
    try:
        entries = msgspec.json.decode(data, type=dict[str, Any]).get("keys")
    except (msgspec.MsgspecError, RecursionError):
        raise KeySetUnusable("it is no JSON object") from None
    if not isinstance(entries, list):
        raise KeySetUnusable("it has no list of keys")
    keys = {entry["kid"]: key for entry in entries if (key := _key(entry)) is not None}
    if not keys:
        raise KeySetUnusable("it has no key that can be used: RSA of 2,048 bits, P-256 or Ed25519, public, with a kid")
    return MappingProxyType(keys)


def _key(entry: Any) -> PyJWK | None:
    """None for a key that we have no use for; a set may well have such ones."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str) or "d" in entry:
        return None
    kind, curve = entry.get("kty"), entry.get("crv")
    algorithm = _ALGORITHMS.get((kind, curve)) if isinstance(kind, str) and isinstance(curve, str | None) else None
    if algorithm is None or entry.get("alg", algorithm) != algorithm or entry.get("use", "sig") != "sig":
        return None
    try:
        key = PyJWK(entry, algorithm)
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    too_short = isinstance(key.key, RSAPublicKey) and key.key.key_size < _LEAST_RSA_BITS
    return None if too_short else key


def _state_of(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - as few words
    except OSError:
        return None
    # The last one is also that of its permissions: a file that could not be read may become readable.
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns


async def _download(url: str) -> bytes:
    import httpx2  # as above

    data = bytearray()
    async with (
        httpx2.AsyncClient(
            follow_redirects=False,  # a redirect would have keys come from where nobody configured
            # A proxy that the environment names would look for this machine's servers on its own machine.
            trust_env=not is_loopback(urlsplit(url).hostname or ""),
        ) as client,
        client.stream("GET", url, headers={"accept": "application/json"}) as response,
    ):
        if response.status_code != httpx2.codes.OK:
            raise KeySetUnusable(f"the answer is HTTP {response.status_code}")
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) > _MOST_BYTES:
                break
    return bytes(data)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, KeySetUnusable) else type(error).__name__
