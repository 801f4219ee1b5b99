"""How values of the vocabulary stand in SQL columns."""

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from famulus_server.ports import Cursor

# The largest BIGINT: "no end" of sequences and times.
END = 2**63 - 1
# Before all times.
NEVER = -END

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(time: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (time - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    """The same moment, in UTC."""
    return _EPOCH + microseconds * _MICROSECOND


def timestamp(microseconds: int) -> Timestamp:
    """The same moment as a proto."""
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1_000)


def stamp_micros(time: Timestamp) -> int:
    """Microseconds since 1970; what is finer is cut off."""
    return time.seconds * 1_000_000 + time.nanos // 1_000


def etag(version: int) -> str:
    """The etag of a row's version."""
    return str(version)


def before(after: Cursor | None) -> tuple[int, str]:
    """The bounds of a list in descending order: what follows the cursor is less than this."""
    return (END, "") if after is None else (after.number, after.id)
