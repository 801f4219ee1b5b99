"""Deletions of users' data in SQL."""

from datetime import datetime

from famulus.v1.user_data_service_pb2 import DeletionReceipt, DeletionState
from famulus_server.errors import NotFound
from famulus_server.ports import Deletion
from famulus_server.store.columns import micros, moment, stamp_micros
from famulus_server.store.session import Row, Session


class SqlDeletions:
    """See `ports.Deletions`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def insert(self, tenant: str, deletion: Deletion) -> bool:
        receipt = deletion.receipt
        stored = (tenant, receipt.id, deletion.user_id, _is_done(receipt), stamp_micros(receipt.create_time))
        body = receipt.SerializeToString()
        return await self._session.run("deletions_insert", *stored, micros(deletion.until), body) > 0

    async def get(self, tenant: str, receipt_id: str, *, lock: bool = False) -> Deletion:
        row = await self._session.one("deletions_get", tenant, receipt_id, lock=lock)
        if row is None:
            raise NotFound("deletion receipt", receipt_id)
        return _deletion(row)

    async def join(self, tenant: str, user_id: str, until: datetime) -> Deletion | None:
        row = await self._session.one("deletions_join", tenant, user_id, micros(until))
        return None if row is None else _deletion(row)

    async def replace(self, tenant: str, deletion: Deletion) -> None:
        receipt = deletion.receipt
        body = receipt.SerializeToString()
        await self._session.run("deletions_replace", tenant, receipt.id, deletion.user_id, _is_done(receipt), body)

    async def under_way(self, before: datetime, *, limit: int) -> list[tuple[str, str]]:
        rows = await self._session.all("deletions_under_way", micros(before), limit)
        return [(tenant, receipt_id) for tenant, receipt_id in rows]


def _deletion(row: Row) -> Deletion:
    user_id, body, until = row
    return Deletion(user_id, DeletionReceipt.FromString(body), moment(until))


def _is_done(receipt: DeletionReceipt) -> bool:
    return receipt.state == DeletionState.DELETION_STATE_COMPLETED
