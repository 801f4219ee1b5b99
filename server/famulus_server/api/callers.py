"""Who calls."""

import asyncio
from collections.abc import Collection
from contextvars import Context
from dataclasses import dataclass

from famulus.v1 import error_reason_pb2 as reasons
from famulus_server.api.calls import Call, Caller, Method, Proceed
from famulus_server.errors import Unauthenticated, Unavailable
from famulus_server.ports import Authenticator, Clock, Credentials

_AUTHORIZATION = "authorization"
_CERTIFICATE = "x509_pem_cert"


class OneCaller:
    """The layer for a server without authentication: everybody who can reach it is the same caller."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def around(self, _: Method, proceed: Proceed) -> Proceed:
        async def know(call: Call) -> None:
            call.caller = self._caller
            await proceed(call)

        return know


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

    def around(self, method: Method, proceed: Proceed) -> Proceed:
        if method.name.startswith(self._open):
            return proceed
        lasts = method.streams or method.name in self._patient

        async def know(call: Call) -> None:
            credentials = shown(call)
            call.caller = await self._authenticator.authenticate(credentials)
            if lasts:
                await self._while_valid(call, call.caller, credentials, proceed)
            else:
                await proceed(call)

        return know

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

    async def _while_valid(self, call: Call, caller: Caller, credentials: Credentials, proceed: Proceed) -> None:
        loop = asyncio.get_running_loop()
        try:
            # A time limit, as in `draining.py`: cheaper than a second task for each stream.
            async with asyncio.timeout(None) as limit:
                lasting = _Lasting(call, caller, credentials, limit)
                timer = None
                if caller.expire_time is not None:
                    left = caller.expire_time - self._clock.now().timestamp()
                    # Kept by the loop for a while when it is cancelled, and not the call with it.
                    timer = loop.call_later(left, lasting.end, context=Context())
                self._lasting.add(lasting)
                try:
                    await proceed(call)
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


def shown(call: Call) -> Credentials:
    """The credentials of a call."""
    values = [str(value) for key, value in call.headers if key == _AUTHORIZATION]
    # gRPC has the certificate here only where it has verified it.
    certificate = b"" if values else next(iter(call.context.auth_context().get(_CERTIFICATE, ())), b"")
    return Credentials(tuple(values), certificate)
