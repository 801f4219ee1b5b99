"""The settings of a command: the file, then the environment, then the command's own options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from famulus_server.config import Settings

Changes = Mapping[str, Mapping[str, str | tuple[()] | None]]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Where the settings come from; `file` is None where there is none."""

    file: Path | None

    def load(self, changes: Changes | None = None) -> Settings:
        """The settings, `changes` (section, key, value) made; a value of None changes nothing. Raises ConfigError."""
        import msgspec  # here, because `--help` needs no settings

        from famulus_server.config import load

        settings = load(self.file, os.environ)
        for section, keys in (changes or {}).items():
            given = {key: value for key, value in keys.items() if value is not None}
            changed = msgspec.structs.replace(getattr(settings, section), **given)
            settings = msgspec.structs.replace(settings, **{section: changed})
        return settings

    def load_to_serve(self, changes: Changes) -> Settings:
        """The same, for a server: all that can be is checked before anything starts. Raises ConfigError."""
        from famulus_server.config import check_key_files

        settings = self.load_again(changes)
        check_key_files(settings.encryption, source=self._source)
        _check_traces()
        return settings

    def load_again(self, changes: Changes, *, guarded: bool = False) -> Settings:
        """The same, for a server that runs: it has its keys, whatever became of their files. One that is `guarded` goes
        on to ask who calls: it may listen where it does, whatever is said of that now. Raises ConfigError."""
        from famulus_server.config import check

        settings = self.load(changes)
        check(settings, source=self._source)
        if not guarded:
            self._check_reachable(settings, changes)
        return settings

    @property
    def _source(self) -> str:
        return str(self.file or "settings")

    def _check_reachable(self, settings: Settings, changes: Changes) -> None:
        from famulus_server.api.addresses import ListenError, check_reachable
        from famulus_server.config import ConfigError

        try:
            check_reachable(
                settings.server.listen,
                authenticated=settings.auth.configured,
                encrypted=bool(settings.tls.cert_file) or settings.auth.plaintext,
            )
        except ListenError as error:
            raise ConfigError(*self._origin_of_listen(changes), str(error)) from error

    def check_certificates(self, settings: Settings) -> None:
        """Whether the files of `[tls]`, if there are any, fit together. Raises ConfigError."""
        if not settings.tls.cert_file:
            return
        # Here, because grpc takes a while to import.
        from famulus_server.api.addresses import ListenError
        from famulus_server.api.tls import ServerCertificates
        from famulus_server.config import ConfigError

        try:
            ServerCertificates(settings.tls)
        except ListenError as error:
            raise ConfigError(str(self.file or "settings"), "tls", str(error)) from error

    def _origin_of_listen(self, changes: Changes) -> tuple[str, str]:
        if changes.get("server", {}).get("listen") is not None:
            return "command line", "--listen"
        if "FAMULUS_SERVER_LISTEN" in os.environ:
            return "environment", "FAMULUS_SERVER_LISTEN"
        return str(self.file), "server.listen"


def _check_traces() -> None:
    from famulus_server.config import ConfigError
    from famulus_server.telemetry.traces import TraceSettingError, exporters

    try:
        exporters(os.environ)
    except TraceSettingError as wrong:
        raise ConfigError("environment", wrong.name, wrong.reason) from None
