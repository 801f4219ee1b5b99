"""`famulus-server audit`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import click

from famulus_server.cli.configuration import Configuration
from famulus_server.cli.console import note
from famulus_server.cli.options import data_dir_option

if TYPE_CHECKING:
    from famulus_server.engine.audit_chain import Head
    from famulus_server.ports import AuditRow, Store

T = TypeVar("T")

_BROKEN = 1
_PAGE = 1_000


class _HeadType(click.ParamType["Head"]):
    """NUMBER:HASH, as `audit head` prints it."""

    name = "head"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Head:
        from famulus_server.engine.audit_chain import Head  # here, because `--help` needs none

        try:
            return Head.parse(value)
        except ValueError:
            self.fail("must be NUMBER:HASH, as `audit head` prints it", param, ctx)


@click.group(short_help="The log of who did what: check and read it.")
def audit() -> None:
    """The log of who did what: check and read it.

    It stands in the database, each row sealed by a hash over itself and the row before. With SQLite the server must be
    stopped first. An older database is brought to the newest version, as by `migrate`.
    """


@audit.command(short_help="Check that nobody has changed the log.")
@data_dir_option
@click.option(
    "--from",
    "start",
    type=click.IntRange(min=0),
    default=0,
    metavar="NUMBER",
    help="Take the row of this number for right, and check those behind it.",
)
@click.option("--head", "noted", type=_HeadType(), metavar="NUMBER:HASH", help="A head that was noted earlier.")
@click.pass_obj
def verify(configuration: Configuration, data_dir: str | None, start: int, noted: Head | None) -> None:
    """Check that no row was changed, removed, added or exchanged since it was written.

    That rows at the end are gone can only be seen by a head that was noted while they were there: give it with --head.
    The last line printed is the head to note now. The exit code is 1 where the chain is broken; the first number that
    is not as it was written is named.

    \b
    Examples:
      famulus-server audit verify
      famulus-server audit verify --head 1042:5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9
      famulus-server audit verify --from 1042
    """
    from famulus_server.engine.audit_chain import verify as check

    verdict = _with_store(
        configuration,
        data_dir,
        lambda store: check(store, start=start, noted=noted, progress=lambda number: note(f"checked up to {number:,}")),
    )
    if verdict.broken_at is not None:
        click.echo(f"broken at {verdict.broken_at}: {verdict.problem}")
        sys.exit(_BROKEN)
    click.echo(f"{verdict.checked:,} rows are as they were written")
    click.echo(str(verdict.head))


@audit.command(short_help="Print the number and the hash of the last row.")
@data_dir_option
@click.pass_obj
def head(configuration: Configuration, data_dir: str | None) -> None:
    """Print the number and the hash of the last row: kept elsewhere, they show later whether rows are gone.

    \b
    Example:
      famulus-server audit head >> /mnt/elsewhere/famulus-audit-heads
    """
    from famulus_server.engine.audit_chain import NOTHING, Head

    last = _with_store(configuration, data_dir, lambda store: store.read(lambda tx: tx.audit.head()))
    click.echo(str(Head(last.number, last.hash) if last else NOTHING))


@audit.command(short_help="Print rows as JSON lines.")
@data_dir_option
@click.option("--tenant", default="", help="Of this tenant only.")
@click.option("--user", default="", help="Of calls that name this user; needs --tenant.")
@click.option("--since", type=click.DateTime(), help="Not older than this time, in UTC.")
@click.option("--method", default="", help="Of this method only: RunService.CreateRun, or CreateRun.")
@click.option(
    "--after", type=click.IntRange(min=0), default=0, metavar="NUMBER", help="Only rows with a higher number."
)
@click.pass_obj
def show(
    configuration: Configuration,
    data_dir: str | None,
    tenant: str,
    user: str,
    since: datetime | None,
    method: str,
    after: int,
) -> None:
    """Print rows in their order, one JSON object in each line.

    Users stand there by a pseudonym, since nothing can be removed from the log: --user finds them.

    \b
    Examples:
      famulus-server audit show --since 2026-11-01 --method DeleteThread
      famulus-server audit show --tenant acme --user ann
      famulus-server audit show --after 1042 >> shipped.jsonl
    """
    if user and not tenant:
        raise click.UsageError("--user needs --tenant: users of two tenants may have the same name")
    oldest = since.replace(tzinfo=UTC) if since else None

    async def print_rows(store: Store) -> None:
        pseudonym = await _pseudonym(store, tenant, user) if user else ""
        async for row in _rows(store, after, tenant):
            right_method = method in ("", row.method, row.method.rpartition(".")[2])
            if right_method and (oldest is None or row.time >= oldest):
                entry = json.loads(row.body)
                if not user or entry["resources"].get("user_id") == pseudonym:
                    click.echo(json.dumps({"number": row.number, **entry, "hash": row.hash.hex()}, ensure_ascii=False))

    _with_store(configuration, data_dir, print_rows)


async def _rows(store: Store, after: int, tenant: str) -> AsyncIterator[AuditRow]:
    while True:
        behind = after
        rows = await store.read(lambda tx, behind=behind: tx.audit.page(after=behind, limit=_PAGE, tenant=tenant))  # type: ignore[misc]
        for row in rows:
            yield row
        if len(rows) < _PAGE:
            return
        after = rows[-1].number


async def _pseudonym(store: Store, tenant: str, user: str) -> str:
    from famulus_server.engine.pseudonyms import PSEUDONYM_KEY, Pseudonyms

    key = await store.write(lambda tx: tx.secrets.obtain(PSEUDONYM_KEY))
    return Pseudonyms(key=key).of("audit", tenant, user)


def _with_store(configuration: Configuration, data_dir: str | None, work: Callable[[Store], Awaitable[T]]) -> T:
    from famulus_server.wiring.stores import open_store  # here, because it loads SQL drivers

    settings = configuration.load({"server": {"data_dir": data_dir}})
    if not settings.store.url and not settings.database.exists():
        raise click.FileError(str(settings.database), "there is no database")

    async def run() -> T:
        # Nothing of the log is sealed.
        async with open_store(settings, progress=note, with_keys=False) as store:
            return await work(store)

    return asyncio.run(run())
