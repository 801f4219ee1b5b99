"""The part of the port to SQL that is about the end of data: how long it is kept, and deletions of users' data."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from famulus.v1.user_data_service_pb2 import DeletionReceipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """How long the threads of a tenant are kept that do not say so themselves; None: for ever. `most_after_create`
    holds for all of them."""

    after_create: timedelta | None = None
    after_last_activity: timedelta | None = None
    on_completion: bool = False
    most_after_create: timedelta | None = None


@dataclass(slots=True)
class Deletion:
    """A deletion of a user's data: of threads, those that were created `until` a time. `user_id` is empty once nothing
    of the user is left in the store."""

    user_id: str
    receipt: DeletionReceipt
    until: datetime


class Deletions(Protocol):
    """Deletions of users' data, under way and done."""

    async def insert(self, tenant: str, deletion: Deletion) -> bool:
        """Stores a new one. False, storing nothing, if one of this user is under way."""

    async def get(self, tenant: str, receipt_id: str, *, lock: bool = False) -> Deletion:
        """Raises NotFound."""

    async def join(self, tenant: str, user_id: str, until: datetime) -> Deletion | None:
        """The one of this user that is under way, and of whom something may be left; it is now about what was created
        until this time, too."""

    async def replace(self, tenant: str, deletion: Deletion) -> None:
        """Stores how far it is; what it is about stays."""

    async def under_way(self, before: datetime, *, limit: int) -> list[tuple[str, str]]:
        """(tenant, receipt id) of those that began before a time and are not done, oldest first."""
