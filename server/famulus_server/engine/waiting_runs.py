"""How many runs wait for a worker, looked at now and then: neither callers nor scrapes wait for that."""

from famulus_server.ports import Store, Waiting

# Beyond that, it is enough to know that there are too many.
_MOST = 10_000


class WaitingRuns:
    """The runs that wait, of the whole database. `last` has them as last looked, None where the store did not tell."""

    def __init__(self, *, store: Store) -> None:
        self._store = store
        self.last: Waiting | None = None

    async def look(self) -> None:
        """Asks the store. Raises Unavailable."""
        try:
            self.last = await self._store.read(lambda tx: tx.runs.waiting(limit=_MOST))
        except BaseException:
            self.last = None
            raise
