"""What makes the audit log tamper-evident: each row has a hash over itself and the hash of the row before."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from famulus_server.ports import AuditEntry, AuditRow, Store

# What the first row has for the hash of the row before.
_START = bytes(32)
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Head:
    """The number and the hash of a row, written `12:c0ffee...`."""

    number: int
    hash: bytes

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Raises ValueError."""
        number, _, digest = text.partition(":")
        head = cls(int(number), bytes.fromhex(digest))
        if head.number < 0 or len(head.hash) != len(_START):
            raise ValueError(f"{text!r} is not a number and a hash")
        return head

    def __str__(self) -> str:
        return f"{self.number}:{self.hash.hex()}"


NOTHING = Head(0, _START)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found: `checked` rows are as they were written, up to `head`. Where not all of them are, `broken_at` is
    the number of the first that is not, and `problem` says what is wrong with it."""

    checked: int
    head: Head
    broken_at: int | None = None
    problem: str = ""


def encode(entry: AuditEntry) -> str:
    """The body of a row: JSON, the keys sorted."""
    return msgspec.json.encode(entry, order="sorted").decode()


def seal(previous: bytes, number: int, body: str) -> bytes:
    """The hash of a row."""
    return hashlib.sha256(previous + number.to_bytes(8, "big") + body.encode()).digest()


async def verify(
    store: Store, *, start: int = 0, noted: Head | None = None, progress: Callable[[int], None] = lambda _: None
) -> Verdict:
    """Checks all rows behind number `start`, whose own hash is taken for right. That rows at the end are gone shows
    only by a head that was noted before. `progress` is told the number of each last row of a page."""
    head = NOTHING
    if start:
        first = await store.read(lambda tx: tx.audit.page(after=start - 1, limit=1))
        if not first or first[0].number != start:
            return Verdict(0, NOTHING, start, "the row is missing")
        head = Head(start, first[0].hash)
    checked = 0
    while True:
        if problem := _contradiction(head, noted):
            return Verdict(checked, head, head.number, problem)
        after = head.number
        rows = await store.read(lambda tx, after=after: tx.audit.page(after=after, limit=_PAGE))  # type: ignore[misc]
        if not rows:
            break
        for row in rows:
            number = head.number + 1
            if problem := _problem(row, number, head.hash) or _contradiction(Head(number, row.hash), noted):
                return Verdict(checked, head, number, problem)
            head = Head(number, row.hash)
            checked += 1
        progress(head.number)
    if noted and noted.number > head.number:
        return Verdict(checked, head, head.number + 1, f"the row is missing: the head was noted at {noted.number}")
    return Verdict(checked, head)


def _problem(row: AuditRow, number: int, previous: bytes) -> str:
    if row.number != number:
        return "the row is missing"
    if seal(previous, number, row.body) != row.hash:
        return "the row was changed, or another stands in its place"
    said = msgspec.json.decode(row.body, type=AuditEntry)
    if (said.tenant, said.time, said.method) != (row.tenant, row.time, row.method):
        return "a column was changed: it contradicts the body"
    return ""


def _contradiction(head: Head, noted: Head | None) -> str:
    return "the hash is not the one that was noted" if noted and noted.number == head.number and noted != head else ""
