"""The SDK's client of one upstream, with its pool of connections."""

import asyncio
import ipaddress
from base64 import b64encode
from importlib import import_module
from typing import TYPE_CHECKING

from famulus_server.models.settings import ModelSettings

if TYPE_CHECKING:
    from famulus_server.models.client import Client

_NO_KEY = "none"  # the SDK insists on a key; servers that want none ignore it
# What a turn needs of it.
_SDK = ("openai.resources.responses", "famulus_server.models.client")


class Connection:
    """Makes the client when it is first needed.

    Importing the SDK takes longer (1-2 s) than starting all the rest of the server, so it is not done at start-up, and
    in a thread, so that other calls go on meanwhile.
    """

    def __init__(self, *, settings: ModelSettings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._lock = asyncio.Lock()

    async def client(self) -> "Client":
        """The client; the same every time."""
        if self._client is None:
            async with self._lock:
                if self._client is None:
                    self._client = await asyncio.to_thread(_make_client, self._settings)
        return self._client

    async def close(self) -> None:
        """Closes all connections of the pool."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()


async def load_sdk() -> None:
    """Imports the SDK in a thread, best while something else starts: the first turn then need not wait for it."""
    for module in _SDK:
        await asyncio.to_thread(import_module, module)


def _make_client(settings: ModelSettings) -> "Client":
    import httpx2
    from openai import DefaultAioHttpClient

    from famulus_server.models.client import Client

    url = httpx2.URL(settings.base_url)
    client = Client(
        base_url=url.copy_with(userinfo=b""),
        api_key=settings.api_key or _NO_KEY,
        max_retries=0,  # `retry` is the only place that tries again
        http_client=DefaultAioHttpClient(
            # aiohttp's `connect` is what httpx calls `pool`: names are resolved in it, and all addresses tried. What
            # httpx calls `connect` is for one of them. The rest: our own timers.
            timeout=httpx2.Timeout(None, connect=settings.connect_timeout, pool=settings.connect_timeout),
            # Worker slots bound the turns; a second bound here (aiohttp's 0: none) would make them wait for each other
            # unseen.
            limits=httpx2.Limits(max_connections=0),
            follow_redirects=False,  # a redirect would carry prompts to somebody whom nobody configured
            # A proxy that the environment names would look for this machine's servers on its own machine.
            trust_env=not is_loopback(url.host),
        ),
    )
    # The SDK fills these from the environment, and would tell every upstream what is meant for one.
    client.organization = client.project = client.admin_api_key = client.webhook_secret = None
    # OPENAI_CUSTOM_HEADERS, too, for which there is no other way out. What stands before the host of a URL goes into a
    # header here: aiohttp wants to be the only one to name who asks.
    named = f"{url.username}:{url.password}".encode()
    client._custom_headers = {"Authorization": f"Basic {b64encode(named).decode()}"} if url.userinfo else {}  # noqa: SLF001
    # The SDK imports the resources at their first use, which would be on the event loop.
    _ = client.responses.input_tokens
    return client


def is_loopback(host: str) -> bool:
    """Whether the host of a URL is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
