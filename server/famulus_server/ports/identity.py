"""The port to whoever knows callers by what they show."""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. Everything that a call reads or writes belongs to the caller's tenant.

    `name` says who it is within the tenant, for the log and the audit; `expire_time` is when the credentials run out,
    in seconds since 1970, None for never.
    """

    tenant: str
    name: str = ""
    roles: frozenset[str] = frozenset()
    expire_time: float | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call shows: the values of all its `authorization` headers, and the certificate (PEM) of the connection's
    client where TLS has verified one, else nothing."""

    authorizations: tuple[str, ...] = field(default=(), repr=False)
    certificate: bytes = b""


class Authenticator(Protocol):
    """Knows callers by their credentials."""

    async def authenticate(self, credentials: Credentials) -> Caller:
        """Whose they are. May take seconds, while keys are fetched.

        Raises Unauthenticated, in the same words whatever is wrong (the log has the reason), and Unavailable where
        that cannot be told at the moment.
        """
