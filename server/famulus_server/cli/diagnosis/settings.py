"""The settings: what `serve` would refuse, and what `config check` warns of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from famulus_server.cli.diagnosis.findings import Finding, fail, ok, warn

if TYPE_CHECKING:
    from famulus_server.cli.configuration import Configuration
    from famulus_server.config import Settings


async def check_settings(
    configuration: Configuration, settings: Settings, environ: Mapping[str, str]
) -> Sequence[Finding]:
    """Of settings that could be read."""
    from famulus_server.cli.config_warnings import find_warnings
    from famulus_server.config import ConfigError

    where = str(configuration.file or "the defaults and the environment")
    try:
        configuration.load_to_serve({})
        configuration.check_certificates(settings)
        _check_script(settings)
    except ConfigError as error:
        return [refused(str(error))]
    warnings = [
        warn("", text, "Change it, or leave it so: it is allowed.") for text in find_warnings(settings, environ)
    ]
    return [ok("", f"a server can start with {where}"), *warnings]


def refused(reason: str) -> Finding:
    """Settings that no server starts with."""
    return fail("", reason, "Correct it; `famulus-server config check` tells whether it is right then.")


def _check_script(settings: Settings) -> None:
    from famulus_server.config import ConfigError

    if not (settings.with_scripted_model and settings.embedded.script):
        return
    from famulus_server.embedded.upstream import ScriptError, load_script

    try:
        load_script(Path(settings.embedded.script))
    except (ScriptError, OSError) as error:
        raise ConfigError("settings", "embedded.script", str(error)) from error
