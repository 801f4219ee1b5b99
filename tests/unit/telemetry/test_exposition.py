import asyncio
import contextlib
import http.client
import socket
import threading
from collections.abc import AsyncIterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics

from famulus_server.ports.metrics import CATALOGUE, RPC_SECONDS, RPCS, Counter
from famulus_server.telemetry import exposition
from famulus_server.telemetry.exposition import MetricsServer
from famulus_server.telemetry.metrics import Measurements
from scraping import get, scrape


@pytest.fixture
def metrics() -> Measurements:
    return Measurements()


@pytest.fixture
async def address(metrics: Measurements) -> AsyncIterator[str]:
    server = MetricsServer(host="127.0.0.1", port=0, measurements=metrics)
    yield f"127.0.0.1:{server.start()}"
    await server.stop()


async def test_every_metric_is_there_with_its_type_and_help(address: str) -> None:
    families = (await scrape(address)).families
    for metric in CATALOGUE:
        family = families[f"famulus_{metric.name}".removesuffix("_total")]
        assert (family.type, family.documentation) == (type(metric).__name__.lower(), metric.help)
        assert metric.name.endswith("_total") == isinstance(metric, Counter)
    assert {"process_cpu_seconds", "python_gc_collections", "python_info"} <= families.keys()


async def test_numbers_are_shown_as_they_are_now(address: str, metrics: Measurements) -> None:
    metrics.add(RPCS, 'odd "\n\\ name', "OK", amount=3)
    metrics.observe(RPC_SECONDS, 0.002, "a")
    metrics.observe(RPC_SECONDS, 100.0, "a")
    found = await scrape(address)
    assert found.all("rpcs_total") == {('odd "\n\\ name', "OK"): 3.0}
    buckets = {
        sample.labels["le"]: sample.value
        for sample in found.families["famulus_rpc_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert list(buckets.values()) == sorted(buckets.values())
    assert (buckets["0.001"], buckets["0.0025"], buckets["60.0"], buckets["+Inf"]) == (0.0, 1.0, 1.0, 2.0)
    metrics.add(RPCS, "a", "OK")
    assert (await scrape(address)).one("rpcs_total", "a", "OK") == 1.0


async def test_open_metrics_is_spoken_to_those_who_want_it(address: str, metrics: Measurements) -> None:
    metrics.add(RPCS, "a", "OK")
    status, kind, body = await asyncio.to_thread(get, address, Accept="application/openmetrics-text; version=1.0.0")
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    families = {family.name: family for family in open_metrics(body)}  # type: ignore[no-untyped-call]
    assert [sample.value for sample in families["famulus_rpcs"].samples] == [1.0]
    assert (await asyncio.to_thread(get, address))[1].startswith("text/plain")


async def test_one_metric_can_be_asked_for(address: str) -> None:
    _, _, body = await asyncio.to_thread(get, address, "/metrics?name[]=famulus_tool_rounds_total")
    assert [line for line in body.splitlines() if line.startswith("# TYPE")] == [
        "# TYPE famulus_tool_rounds_total counter"
    ]


async def test_nothing_else_is_served(address: str) -> None:
    assert (await asyncio.to_thread(get, address, "/"))[0] == 404
    assert (await asyncio.to_thread(get, address, "/metrics/more"))[0] == 404


async def test_loop_that_hangs_is_told_of(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "_LOOP_SECONDS", 0.05)
    threads = threading.active_count()
    with contextlib.closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.connect()
        while threading.active_count() == threads:  # noqa: ASYNC110 - until the loop has taken the connection
            await asyncio.sleep(0)
        connection.request("GET", "/metrics")
        # In the thread of the loop, which cannot say anything meanwhile.
        assert connection.getresponse().status == 503


async def test_silent_clients_keep_nobody_else_out(address: str) -> None:
    host, port = address.split(":")
    with contextlib.ExitStack() as clients:
        silent = [clients.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(40)]
        assert (await scrape(address)).families
        # Those that came first had to go, and so had the one in whose place the scrape was.
        for connection in silent[:25]:
            assert await asyncio.to_thread(connection.recv, 1) == b""
        for connection in silent[25:]:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)


async def test_silent_clients_are_cut_off(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition._Handler, "timeout", 0.05)
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as silent:
        assert await asyncio.to_thread(silent.recv, 1) == b""


async def test_stop_does_not_wait_for_silent_clients(metrics: Measurements) -> None:
    before = set(threading.enumerate())
    server = MetricsServer(host="127.0.0.1", port=0, measurements=metrics)
    port = server.start()
    with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nHost")
        async with asyncio.timeout(exposition._CLIENT_SECONDS / 2):
            await server.stop()
    assert [one for one in set(threading.enumerate()) - before if not one.name.startswith("asyncio")] == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_address_that_is_taken_cannot_be_listened_on(address: str, metrics: Measurements) -> None:
    with pytest.raises(OSError, match="in use"):
        MetricsServer(host="127.0.0.1", port=int(address.split(":")[1]), measurements=metrics).start()
