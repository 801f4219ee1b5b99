"""The port to the audit log: one chain of entries for the whole service, which can only grow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """What is kept of one call: who did what to which resource, from where, and how it ended. Ids only, never content.

    `time` is in UTC. `tenant` and `actor` are empty where nobody knows who called. `left_out` is how many calls are not
    in the log, in place of which this entry stands: it then says nothing else.
    """

    id: str
    time: datetime
    tenant: str = ""
    actor: str = ""
    method: str = ""
    resources: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    reason: str = ""
    peer: str = ""
    request_id: str = ""
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An entry as it is stored. Numbers begin with 1 and have no gaps; `body` is the whole entry, and `hash` covers it,
    the number, and the hash of the row before."""

    number: int
    tenant: str
    time: datetime
    method: str
    body: str
    hash: bytes


class AuditLog(Protocol):
    """The audit log of all tenants. It has no method to change or remove, and the database refuses both."""

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Adds entries at the end, in this order; nothing where the first of them is there already. Keeps others from
        adding until the end of the write."""

    async def head(self) -> AuditRow | None:
        """The last row."""

    async def page(self, *, after: int, limit: int, tenant: str = "") -> list[AuditRow]:
        """Rows behind a number, in order; of one tenant only, unless that is empty."""
