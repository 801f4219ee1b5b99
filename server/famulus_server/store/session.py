"""What the repositories need of a database connection within a transaction, whichever engine it is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counted since the store was made: statements (BEGIN and its kin included), commits of writes, and units that were
    undone in favour of others, to be run again."""

    statements: int
    commits: int
    conflicts: int = 0


class RunAgain(Exception):
    """The unit met a concurrent one, which has committed since: run again, it sees what that one stored.

    `otherwise` is the error for the caller where that does not help.
    """

    def __init__(self, otherwise: Exception) -> None:
        super().__init__(otherwise)
        self.otherwise = otherwise


class Session(Protocol):
    """Runs named queries (`queries.sql`) in one transaction. Arguments are bound to `$1`, `$2`, ..."""

    def now(self) -> datetime:
        """The database's clock, in UTC."""

    async def one(self, name: str, *args: object, lock: bool = False, ahead: bool = False) -> Row | None:
        """The first row, or None. `lock` holds it until the end of the transaction; the query must say how. `ahead` of
        what was posted it need not see that."""

    async def all(self, name: str, *args: object, lock: bool = False) -> Sequence[Row]:
        """All rows. `lock` holds them until the end of the transaction."""

    async def hold(self, name: str, *args: object) -> None:
        """Runs a query that only keeps others away, until the end of the transaction: nothing where there are none."""

    async def run(self, name: str, *args: object) -> int:
        """Changes rows; returns how many."""

    async def run_many(self, name: str, rows: Iterable[Sequence[object]]) -> None:
        """Runs one query for each of many lists of arguments."""

    async def post(self, name: str, rows: Sequence[Sequence[object]], *, otherwise: Exception | None = None) -> None:
        """The same for a query that adds a row, or replaces it: before the next statement at the latest, and perhaps
        together with others that are posted, none of which sees what the others do. `otherwise` goes with a single row,
        and is raised where that is not changed."""
