"""Settings that are read again while the server runs."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import structlog

from famulus_server.cli.configuration import Changes, Configuration
from famulus_server.config import ConfigError, Settings, check_models
from famulus_server.engine.policy import Policy
from famulus_server.wiring.server import RunningServer

_log = structlog.get_logger(__name__)
# Where the parts of a policy stand in the file.
_KEYS = {"prices": "models.price", "quotas": "models.limits", "currency": "prices.currency"}

# Keys of [auth] that say who may call.
_ADMITTING = ("issuers", "keys", "certificates")


class Reloading:
    """Reads the settings of a running server again, and gives it the policy they have now."""

    def __init__(
        self, *, configuration: Configuration, changes: Changes, settings: Settings, server: RunningServer
    ) -> None:
        """`settings` are those that the server started with; `changes` were made to them."""
        self._configuration = configuration
        self._changes = changes
        self._settings = settings
        self._server = server
        self._auth = settings.auth

    def reload(self) -> None:
        """What runs is not disturbed. The log says what was done; settings that are wrong change nothing."""
        file = self._configuration.file
        if file is None:
            _log.warning("settings not reloaded", reason="the server was started without a file")
            return
        try:
            # Not that it may listen: where the last caller is taken out of the file, he must not stay for that.
            guarded = self._server.admit is not None
            settings = self._configuration.load_again(self._changes, guarded=guarded)
        except ConfigError as error:
            _log.error("settings not reloaded", reason=str(error))
            return
        try:
            check_models(settings.policy, self._server.models, source=str(file))
        except ConfigError as error:
            # The file is right by itself, so a route chooses one of the models that only the file has.
            unserved = [model.name for model in settings.models if model.name not in self._server.models]
            _log.error("settings not reloaded", reason=str(error), models_after_a_restart=unserved)
            return
        old, new = self._server.policies.current, settings.policy
        # Models that the file no longer has are served until the next start, within their limits and at their prices.
        gone = {name for name in self._server.models if name not in {model.name for model in settings.models}}
        new = msgspec.structs.replace(
            new,
            quotas={**new.quotas, **{name: quota for name, quota in old.quotas.items() if name in gone}},
            prices={**new.prices, **{name: price for name, price in old.prices.items() if name in gone}},
        )
        changed = list(_changed_policy(old, new))
        self._server.policies.current = new
        changed.extend(self._admit(settings))
        _log.info("settings reloaded", file=str(file), changed=changed)
        if rest := list(_changed_settings(self._settings, settings, admitting=self._server.admit is not None)):
            _log.warning("settings changed that need a restart", keys=rest)

    def _admit(self, settings: Settings) -> list[str]:
        """Lets those call whom the settings name, and nobody else; returns the keys that this is about."""
        if self._server.admit is None:
            return []
        before, self._auth = self._auth, settings.auth
        changed = [f"auth.{name}" for name in _changed_fields(before, settings.auth) if name in _ADMITTING]
        if changed:
            self._server.admit(settings.auth)
        return changed


def _changed_policy(old: Policy, new: Policy) -> Iterator[str]:
    for name in _changed_fields(old, new):
        yield _KEYS.get(name, name)


def _changed_settings(old: Settings, new: Settings, *, admitting: bool) -> Iterator[str]:
    for section in _changed_fields(old, new):
        if section == "models":
            yield from _changed_models(old, new)
        elif section != "policy":
            for key in _changed_fields(getattr(old, section), getattr(new, section)):
                if not (admitting and section == "auth" and key in _ADMITTING):
                    yield f"{section}.{key}"


def _changed_models(old: Settings, new: Settings) -> Iterator[str]:
    before, after = ({model.name: model for model in settings.models} for settings in (old, new))
    for name in {**before, **after}:
        if name in before and name in after:
            for key in _changed_fields(before[name], after[name]):
                yield f"models.{name}.{key}"
        else:
            yield f"models.{name}"


def _changed_fields(old: msgspec.Struct, new: msgspec.Struct) -> Iterator[str]:
    for field in msgspec.structs.fields(old):
        if getattr(old, field.name) != getattr(new, field.name):
            yield field.name
