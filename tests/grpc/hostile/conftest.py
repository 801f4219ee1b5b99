"""Servers on either database, with what hostile requests name."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from msgspec.structs import replace

from complaints import heard_complaints
from famulus_server.config import StoreSettings
from hostile.seeds import plant, stubs_on
from hostile.target import Target
from postgres import create_database, drop_database
from serving import ServerThread, settings_in

_SCRIPT = Path(__file__).parents[1] / "script.toml"


@pytest.fixture(scope="session", params=["SQLite", "PostgreSQL"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    settings = settings_in(tmp_path_factory.mktemp("hostile"), script=_SCRIPT)
    # Streams that wait for nothing soon say so.
    settings = replace(settings, server=replace(settings.server, heartbeat_seconds=0.2))
    url = ""
    if request.param == "PostgreSQL":
        server_url = request.getfixturevalue("postgres_url")
        url = create_database(server_url)
        settings = replace(settings, store=StoreSettings(url=url, pool=4))
    thread = ServerThread(settings)
    try:
        with grpc.insecure_channel(thread.start().address) as channel:
            stubs = stubs_on(channel)
            yield Target(channel, stubs, plant(stubs))
    finally:
        thread.stop()
        if url:
            drop_database(server_url, url)


@pytest.fixture(scope="module", autouse=True)
def no_complaints() -> Iterator[None]:
    """What is refused, or broken by a caller, is no fault of the server's."""
    with heard_complaints() as complaints:
        yield
        assert not complaints
