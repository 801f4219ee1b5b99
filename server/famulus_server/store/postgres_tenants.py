"""Whose rows a connection to PostgreSQL may see: the setting `famulus.tenant`, which the policies of all tables go by.

Migration 0010 has the policies. Where the setting is empty or was never made, no row is seen.
"""

import logging
from typing import TYPE_CHECKING, Any

import asyncpg

# What the setting is on a new connection, and for work across tenants.
NOBODY = ""
EVERYBODY = "*"
_UNBOUND_ROLE = "SELECT rolname FROM pg_roles WHERE rolname = current_user AND (rolsuper OR rolbypassrls)"

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    # Generic for the type checker only.
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection


class Visible:
    """What `famulus.tenant` is on one connection outside any transaction."""

    def __init__(self) -> None:
        self.tenant = NOBODY


class TenantConnection(_Connection):
    """A connection that knows whose rows it shows, so that the setting is made only where it changes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.visible = Visible()


def show(tenant: str) -> str:
    """The command that makes a tenant's rows, or those of EVERYBODY, visible. For any text: the literal is one however
    the server reads backslashes. Raises ValueError for what no statement can hold."""
    if "\0" in tenant:
        raise ValueError("a tenant's name cannot hold NUL")
    quoted = tenant.replace("\\", "\\\\").replace("'", "''")
    return f"SET famulus.tenant = E'{quoted}'"


def alone(tenant: str) -> str:
    """What to show for one tenant, of any name: whoever should be called like EVERYBODY is nobody."""
    return NOBODY if tenant == EVERYBODY else tenant


async def unbound_role(connection: "_Connection | PoolConnectionProxy[asyncpg.Record]") -> str | None:
    """The connection's role where the policies do not bind it: a superuser, or one with BYPASSRLS."""
    role: str | None = await connection.fetchval(_UNBOUND_ROLE)
    return role


async def warn_of_unbound_role(connection: "PoolConnectionProxy[asyncpg.Record]") -> None:
    """Logs a warning where the policies do not bind the connection's role: then queries alone keep tenants apart."""
    role = await unbound_role(connection)
    if role is not None:
        _log.warning(
            "row-level security does not bind the database role %r, a superuser or one with BYPASSRLS: tenants are kept"
            " apart by the queries alone. Let the server connect as an ordinary role that owns the database",
            role,
        )
