"""What callers are told where the store cannot do its work now."""

from famulus.v1.error_reason_pb2 import ErrorReason
from famulus_server.errors import Unavailable

_RETRY_SECONDS = 1.0


def unavailable() -> Unavailable:
    """What a caller is told when the database cannot be used."""
    return Unavailable(
        ErrorReason.ERROR_REASON_STORE_UNAVAILABLE, "the store cannot be used at present", retry_after=_RETRY_SECONDS
    )


def overloaded() -> Unavailable:
    """What a caller is told when too many wait before it."""
    return Unavailable(
        ErrorReason.ERROR_REASON_SERVER_OVERLOADED, "the server has too much to do", retry_after=_RETRY_SECONDS
    )
