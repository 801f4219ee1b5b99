"""What must hold of settings before anything starts."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from famulus_server.config.documents import convert
from famulus_server.config.errors import ConfigError
from famulus_server.config.settings import EncryptionSettings, Settings
from famulus_server.encryption.errors import KeyUnusable
from famulus_server.encryption.key_sources import read_key
from famulus_server.engine.policy import Policy
from famulus_server.identity.settings import KeySettings, find_fault

_NO_PORT = "its port is no number from 0 to 65535"


def check(settings: Settings, *, source: str = "settings") -> None:
    """What holds of settings that a server can start with, besides what `load` checks. Raises ConfigError."""
    if settings.server.role != "all" and not settings.store.url:
        raise ConfigError("settings", "server.role", "SQLite serves one process: give [store] url, or the role all")
    server, metrics = settings.server, settings.metrics
    taken = {server.listen: "server.listen"}
    for key, listen in {"server.health_listen": server.health_listen, "metrics.listen": metrics.listen}.items():
        if not _has_valid_port(f"//{listen}"):
            raise ConfigError(source, key, _NO_PORT)
        if listen and not listen.endswith(":0") and (other := taken.setdefault(listen, key)) != key:
            raise ConfigError(source, key, f"is the address of {other}: choose another port")
    _check_access(settings, source)
    _check_encryption(settings.encryption, source)
    for model in settings.models:
        if model.name in settings.embedded_models:
            raise ConfigError(source, "models", f"{model.name!r} is the name of an embedded model: choose another")
    for key, url in (("store.url", settings.store.url), ("redis.url", settings.redis.url)):
        if not _has_valid_port(url):
            raise ConfigError(source, key, _NO_PORT)
    names = [*settings.embedded_models, *(model.name for model in settings.models)]
    check_models(settings.policy, names, source=source)


def check_key(entry: Mapping[str, Any]) -> None:
    """Whether `[[auth.keys]]` can have this entry. Raises ConfigError."""
    convert(entry, KeySettings, "command line", "auth.keys")


def _check_access(settings: Settings, source: str) -> None:
    auth, tls = settings.auth, settings.tls
    if fault := find_fault(auth):
        raise ConfigError(source, f"auth.{fault[0]}", fault[1])
    if bool(tls.cert_file) != bool(tls.key_file):
        raise ConfigError(source, "tls", "cert_file and key_file go together")
    if tls.client_ca_file and not tls.cert_file:
        raise ConfigError(source, "tls.client_ca_file", "needs cert_file and key_file, too")
    if auth.certificates and not tls.client_ca_file:
        raise ConfigError(source, "auth.certificates", "need [tls] client_ca_file: without it clients show none")


def _check_encryption(encryption: EncryptionSettings, source: str) -> None:
    if encryption.key_file and encryption.key_command:
        raise ConfigError(source, "encryption", "has both key_file and key_command")
    if encryption.old_key_files and not encryption.is_on:
        raise ConfigError(source, "encryption.old_key_files", "goes with key_file or key_command only")


def check_key_files(encryption: EncryptionSettings, *, source: str = "settings") -> None:
    """Whether the files of keys have some. Raises ConfigError."""
    files = {"key_file": encryption.key_file} if encryption.key_file else {}
    files |= {f"old_key_files[{at}]": file for at, file in enumerate(encryption.old_key_files)}
    for key, file in files.items():
        try:
            read_key(Path(file).expanduser())
        except KeyUnusable as error:
            raise ConfigError(source, f"encryption.{key}", str(error)) from error


def check_models(policy: Policy, names: Collection[str], *, source: str = "settings") -> None:
    """Whether there is a model, and each that a route may choose, where these are their names. Raises ConfigError."""
    if not names:
        raise ConfigError(source, "models", "there is no model: configure [[models]], or allow an embedded one")
    for index, route in enumerate(policy.routes.values()):
        if route.name in names:
            raise ConfigError(source, f"routes[{index}].name", f"a model has the name {route.name!r}: choose another")
        chosen = {f"variants[{at}].model": variant.model for at, variant in enumerate(route.variants)}
        spare = {f"fallbacks[{at}]": model for at, model in enumerate(route.fallbacks)}
        for key, model in {**chosen, **spare}.items():
            if model not in names:
                reason = f"there is no model {model!r}; there are {', '.join(names)}"
                raise ConfigError(source, f"routes[{index}].{key}", reason)


def _has_valid_port(url: str) -> bool:
    # PostgreSQL's may have several.
    try:
        for host in urlsplit(url).netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{host}").port
    except ValueError:
        return False
    return True
