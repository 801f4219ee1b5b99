"""New keys for what is encrypted: a few rows at a time, beside servers at work, and again from where it was broken off.

Nothing here undoes what others store meanwhile: a row that changes at that moment is left for the next walk.
"""

from collections.abc import Callable

from famulus_server.ports import Place, Store, Transaction

_KEYS_AT_A_TIME = 500
_ROWS_AT_A_TIME = 100
# Servers may seal with a retired key for as long as they remember it, and a transaction lasts some seconds more.
GRACE_SECONDS = 900.0

Progress = Callable[[str], None]


async def rewrap(store: Store, *, progress: Progress) -> int:
    """Has all data keys wrapped by the operator's key of today; returns how many were not."""
    done = 0
    while True:
        some = await store.write(lambda tx: tx.keys.rewrap(limit=_KEYS_AT_A_TIME))
        if not some:
            return done
        done += some
        progress(f"{done:,} data keys wrapped by the new key")


async def renew(store: Store, *, grace: float, progress: Progress) -> float:
    """Has all that is to be encrypted encrypted with new data keys, and removes the old ones.

    Those are kept until they have been retired for `grace` seconds, because others may still use them. Returns for how
    many seconds more they have to be; call it again then.
    """
    if retired := await store.write(lambda tx: tx.keys.retire()):
        progress(f"{retired:,} data keys retired")
    while True:
        age = await store.read(lambda tx: tx.keys.retired_for())
        changed = await _walk(store, progress)
        if age is None:
            return 0.0
        if age < grace:
            return grace - age
        # Where a whole walk has found nothing, nothing was behind it, either.
        if not changed:
            break
    removed = await store.write(lambda tx: tx.keys.remove_retired())
    progress(f"{removed:,} retired data keys removed")
    return 0.0


async def _walk(store: Store, progress: Progress) -> int:
    """From end to end of all tables; returns how many rows were encrypted."""
    done = 0
    for table in await store.read(_tables):
        changed = await _walk_through(store, table)
        if changed:
            progress(f"{table}: {changed:,} rows encrypted")
        done += changed
    return done


async def _walk_through(store: Store, table: str) -> int:
    done = 0
    place: Place | None = None
    while True:

        async def unit(tx: Transaction, after: Place | None = place) -> tuple[Place | None, int]:
            return await tx.sealed.reseal(table, after=after, limit=_ROWS_AT_A_TIME)

        place, changed = await store.write(unit)
        done += changed
        if place is None:
            return done


async def _tables(tx: Transaction) -> list[str]:
    return list(tx.sealed.tables)
