"""`famulus-server auth`."""

from __future__ import annotations

import json
import secrets

import click

from famulus_server.cli.console import note

_ROLES = ("reader", "writer", "operator", "privacy", "tools")
_RANDOM_BYTES = 32


@click.group(short_help="Who may call: make static keys.")
def auth() -> None:
    """Who may call: make static keys."""


@auth.command("new-key", short_help="Make a static key.")
@click.option("--name", default="key", show_default=True, metavar="NAME", help="Who has it, for the log.")
@click.option("--tenant", default="default", show_default=True, metavar="TENANT", help="Whose data its owner works on.")
@click.option(
    "--role",
    "roles",
    type=click.Choice(_ROLES),
    multiple=True,
    default=["writer"],
    show_default=True,
    help="What its owner may do. Can be repeated.",
)
def new_key(name: str, tenant: str, roles: tuple[str, ...]) -> None:
    """Make a static key, and the block of settings under which a server knows it.

    The block goes to standard output. It has only a hash of the key. The key itself goes to standard error, and is
    kept nowhere: give it to its owner now. After a change of its file, SIGHUP has a running server read it again.

    \b
    Examples:
      famulus-server auth new-key --name ci --tenant acme --role writer >> famulus.toml
      famulus-server auth new-key --tenant acme --role operator --role privacy
    """
    from famulus_server.config import check_key
    from famulus_server.identity.settings import KEY_PREFIX, hash_of_key

    key = KEY_PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    entry = {"name": name, "tenant": tenant, "roles": list(roles), "sha256": hash_of_key(key)}
    check_key(entry)
    # JSON strings of printable ASCII are TOML strings, too.
    lines = [f"{field} = {json.dumps(value)}" for field, value in entry.items()]
    click.echo("\n".join(["", "[[auth.keys]]", *lines]))
    note(f"The key, shown only now: {key}")
