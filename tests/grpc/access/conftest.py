"""Servers that ask callers who they are."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from credentials import AUDIENCE, ISSUER, Signer, jwks
from famulus_server.api.settings import TlsSettings
from famulus_server.identity.settings import AuthSettings, IssuerSettings
from guarded import Guarded
from serving import ServerThread, settings_in

_SCRIPT = Path(__file__).parents[1] / "script.toml"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Guarded]]:
    """Starts servers that are stopped after the module's tests."""
    with ExitStack() as stack:

        def started(auth: AuthSettings, tls: TlsSettings | None = None, *, health_listen: str = "") -> Guarded:
            settings = settings_in(tmp_path_factory.mktemp("server"), script=_SCRIPT)
            server = msgspec.structs.replace(settings.server, health_listen=health_listen)
            settings = msgspec.structs.replace(settings, auth=auth, tls=tls or TlsSettings(), server=server)
            thread = ServerThread(settings)
            running = thread.start()
            stack.callback(thread.stop)
            return Guarded(running, thread)

        yield started


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.new("one")


@pytest.fixture(scope="module")
def issuer(signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> IssuerSettings:
    """An issuer with one key, in a file."""
    file = tmp_path_factory.mktemp("issuer") / "keys.json"
    file.write_bytes(jwks(signer))
    return IssuerSettings(issuer=ISSUER, audience=AUDIENCE, jwks_file=str(file))
