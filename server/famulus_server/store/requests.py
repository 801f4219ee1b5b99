"""Request ids in SQL (contract 5)."""

from datetime import timedelta

from famulus.v1.error_reason_pb2 import ErrorReason
from famulus_server.errors import AlreadyExists
from famulus_server.ports import RequestKey
from famulus_server.store.columns import micros
from famulus_server.store.session import RunAgain, Session

_KEPT = timedelta(hours=24)


class SqlRequestIds:
    """See `ports.RequestIds`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def find(self, tenant: str, key: RequestKey) -> str | None:
        await self._session.hold("requests_hold", tenant, key.method, key.request_id)
        row = await self._session.one("requests_find", tenant, key.method, key.request_id, self._oldest())
        if row is None:
            return None
        fingerprint, resource_id = row
        if fingerprint != key.fingerprint:
            raise _reused()
        return str(resource_id)

    async def remember(self, tenant: str, key: RequestKey, resource_id: str) -> None:
        now = micros(self._session.now())
        row = (tenant, key.method, key.request_id, key.fingerprint, resource_id, now, self._oldest())
        # Looked for in vain, and there now: run again, an equal request is found.
        await self._session.post("requests_remember", [row], otherwise=RunAgain(_reused()))

    async def forget_old(self, limit: int) -> int:
        return await self._session.run("requests_forget_old", self._oldest(), limit)

    def _oldest(self) -> int:
        return micros(self._session.now() - _KEPT)


def _reused() -> AlreadyExists:
    return AlreadyExists(
        ErrorReason.ERROR_REASON_REQUEST_ID_REUSED, "the request id was used for another request within 24 hours"
    )
