"""Etags (AIP-154): a caller that names one is refused when somebody else was faster."""

from famulus.v1 import error_reason_pb2 as reasons
from famulus_server.errors import Aborted


def check_etag(given: str, current: str) -> None:
    """Raises Aborted (ETAG_MISMATCH) if the caller named another etag than the current one."""
    if given and given != current:
        raise Aborted(reasons.ERROR_REASON_ETAG_MISMATCH, "the resource has changed: read it again")
