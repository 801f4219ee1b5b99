"""Certificates of the server that are replaced while it runs, on real sockets; only the clock is held."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from credentials import SPIFFE, Authority, Pair, uri
from famulus_server.api.settings import TlsSettings
from famulus_server.api.tls import ServerCertificates


class Renewing:
    """A server without methods on certificates from a folder."""

    def __init__(self, folder: Path, ca: Authority) -> None:
        self.folder = folder
        self.now = 0.0
        cert, key = ca.server().write(folder, "server")
        (folder / "ca.crt").write_bytes(ca.pem)
        tls = TlsSettings(cert_file=cert, key_file=key, client_ca_file=str(folder / "ca.crt"))
        self._server = grpc.aio.server()
        certificates = ServerCertificates(tls, stopwatch=lambda: self.now)
        self._port = self._server.add_secure_port("127.0.0.1:0", certificates.credentials())

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    def channel(self, ca: Authority, client: Pair) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(ca.pem, client.key, client.chain)
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(f"127.0.0.1:{self._port}", credentials, options)

    async def connects(self, ca: Authority, client: Pair) -> bool:
        """Whether there is a new connection, for who trusts `ca` and is `client`."""
        async with self.channel(ca, client) as channel:
            return await answers(channel)


async def answers(channel: grpc.aio.Channel) -> bool:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/nothing/here")(b"")  # type: ignore[arg-type]
    return caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.fixture
def old() -> Authority:
    return Authority("old")


@pytest.fixture
async def renewing(tmp_path: Path, old: Authority) -> AsyncIterator[Renewing]:
    server = Renewing(tmp_path, old)
    await server.start()
    yield server
    await server.stop()


async def test_new_connections_get_the_new_certificate_and_old_ones_stay(renewing: Renewing, old: Authority) -> None:
    new, client = Authority("new"), old.client(uri(SPIFFE))
    async with renewing.channel(old, client) as before:
        assert await answers(before)
        new.server().write(renewing.folder, "server")
        # Nobody looks twice within a second.
        assert await renewing.connects(old, client)
        renewing.now += 2
        assert await renewing.connects(new, client)
        assert not await renewing.connects(old, client)
        assert await answers(before)


async def test_ca_of_the_clients_is_replaced_too(renewing: Renewing, old: Authority) -> None:
    new = Authority("new")
    assert not await renewing.connects(old, new.client(uri(SPIFFE)))
    (renewing.folder / "ca.crt").write_bytes(new.pem)
    renewing.now += 2
    assert await renewing.connects(old, new.client(uri(SPIFFE)))
    assert not await renewing.connects(old, old.client(uri(SPIFFE)))


@pytest.mark.parametrize("file", ["server.crt", "server.key", "ca.crt"])
async def test_file_that_is_wrong_or_half_of_a_replacement_changes_nothing_until_it_is_right(
    renewing: Renewing, old: Authority, file: str
) -> None:
    client = old.client(uri(SPIFFE))
    path = renewing.folder / file
    for spoil in (lambda: path.write_bytes(b"nonsense"), path.unlink):
        spoil()
        renewing.now += 2
        assert await renewing.connects(old, client)
    pair = Authority("new").server()
    (renewing.folder / "server.crt").write_bytes(pair.chain)
    renewing.now += 2
    assert await renewing.connects(old, client)
    old.server().write(renewing.folder, "server")
    (renewing.folder / "ca.crt").write_bytes(Authority("other").pem)
    renewing.now += 2
    assert not await renewing.connects(old, client)
