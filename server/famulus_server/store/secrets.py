"""Random keys in SQL."""

import os

from famulus_server.store.session import Session

_BYTES = 32


class SqlSecrets:
    """See `ports.Secrets`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def obtain(self, name: str) -> bytes:
        row = await self._session.one("secrets_get", name)
        if row is None:
            # Another replica may have been faster: what is stored counts.
            await self._session.run("secrets_insert", name, os.urandom(_BYTES))
            row = await self._session.one("secrets_get", name)
        if row is None:
            raise LookupError(f"the secret {name} was removed at this moment")
        return bytes(row[0])
