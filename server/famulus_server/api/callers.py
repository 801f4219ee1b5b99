"""Who calls."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from grpc.aio import ServicerContext

from famulus.v1 import error_reason_pb2 as reasons
from famulus_server.api.calls import Call, Caller
from famulus_server.errors import Unauthenticated, Unavailable
from famulus_server.ports import Authenticator, Clock, Credentials

_AUTHORIZATION = "authorization"
_CERTIFICATE = "x509_pem_cert"


class OneCaller:
    """The layer for a server without authentication: everybody who can reach it is the same caller."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        call.caller = self._caller
        yield


@dataclass(frozen=True, slots=True, eq=False)
class _Lasting:
    """A call that goes on for as long as its credentials hold."""

    call: Call
    caller: Caller
    credentials: Credentials
    limit: asyncio.Timeout

    def end(self) -> None:
        # First, so that nobody takes it for a caller who went away.
        self.call.let_go = True
        self.limit.reschedule(asyncio.get_running_loop().time())


class Callers:
    """The layer that finds out who calls, and ends streams when the credentials of their callers do."""

    def __init__(
        self, *, authenticator: Authenticator, clock: Clock, open_services: Collection[str], patient: Collection[str]
    ) -> None:
        """`open_services` (full names) may be called by anybody. Calls of the methods `patient` may take as long as
        streams."""
        self._authenticator = authenticator
        self._clock = clock
        self._open = tuple(f"/{service}/" for service in open_services)
        self._patient = frozenset(patient)
        self._lasting: set[_Lasting] = set()

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        if call.method.startswith(self._open):
            yield
            return
        credentials = shown(call.context)
        call.caller = await self._authenticator.authenticate(credentials)
        if not (call.streams or call.method in self._patient):
            yield
            return
        async with self._while_valid(call, call.caller, credentials):
            yield

    async def look_again(self) -> None:
        """Ends the streams of callers who are not known any more as who they were: for when that may have changed."""
        for lasting in list(self._lasting):
            try:
                known = await self._authenticator.authenticate(lasting.credentials) == lasting.caller
            except Unauthenticated:
                known = False
            except Unavailable:
                known = True
            if not known:
                lasting.end()
            # There may be thousands, and others wait for their answers.
            await asyncio.sleep(0)

    @asynccontextmanager
    async def _while_valid(self, call: Call, caller: Caller, credentials: Credentials) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        try:
            # A time limit, as in `draining.py`: cheaper than a second task for each stream.
            async with asyncio.timeout(None) as limit:
                lasting = _Lasting(call, caller, credentials, limit)
                timer = None
                if caller.expire_time is not None:
                    timer = loop.call_later(caller.expire_time - self._clock.now().timestamp(), lasting.end)
                self._lasting.add(lasting)
                try:
                    yield
                finally:
                    self._lasting.discard(lasting)
                    if timer is not None:
                        timer.cancel()
        except TimeoutError:
            if not limit.expired():
                raise
            raise Unauthenticated(
                reasons.ERROR_REASON_CREDENTIALS_EXPIRED, "the credentials are no longer valid: go on with fresh ones"
            ) from None


def shown(context: ServicerContext[Any, Any]) -> Credentials:
    """The credentials of a call."""
    values = [value for key, value in context.invocation_metadata() or () if key == _AUTHORIZATION]
    # gRPC has the certificate here only where it has verified it.
    certificate = b"" if values else next(iter(context.auth_context().get(_CERTIFICATE, ())), b"")
    return Credentials(tuple(str(value) for value in values), certificate)
