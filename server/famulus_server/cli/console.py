"""What people see besides the result of a command, all of it on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from famulus_server.config import Settings

_JSON = {"auto": None, "json": True, "text": False}


def note(text: str) -> None:
    """Tell something that is not the result."""
    click.echo(text, err=True)


def start_logs(settings: Settings) -> None:
    """Log as the settings say."""
    from famulus_server.telemetry.logs import configure_logs  # here, because structlog takes long to import

    keys = [model.api_key for model in settings.models]
    configure_logs(level=settings.log.level, json=_JSON[settings.log.format], secrets=keys)
