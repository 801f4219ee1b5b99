"""`top`: what it says of replicas that give metrics over HTTP, and of those that do not."""

import json
import socket
from collections.abc import Iterator
from io import StringIO

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from famulus_server.cli import main
from famulus_server.cli.monitor.replicas import Replicas, View, metrics_url
from famulus_server.cli.monitor.tables import render
from famulus_server.embedded.upstream import ScriptedUpstream, default_script
from metered import Metered


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def of(*addresses: str, names: tuple[str, ...] = (), timeout: float = 5.0) -> Replicas:
    return Replicas(addresses=addresses, names=names, timeout=timeout)


def drawn(view: View) -> list[str]:
    paper = StringIO()
    Console(file=paper, width=120).print(render(view))
    return paper.getvalue().splitlines()


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["top", *arguments])


async def test_figures_are_those_of_all_replicas_together_and_of_each(nobody: str) -> None:
    one, other = Metered(), Metered()
    for replica in (one, other):
        # Both tell of the same queue.
        replica.set("queue_runs", 7)
        replica.set("redis_reachable", 1)
        replica.set("limiter_shared", 1)
        replica.set("worker_slots", 256)
    one.set("queue_oldest_seconds", 12.5)
    other.set("limiter_shared", 0)
    other.set("draining", 1)
    one.set("runs_executing", 40)
    one.set("rpcs_open", 3, "RunService/WatchRun")
    one.set("rpcs_open", 2, "RunService/StreamRun")
    one.set("rpcs_open", 9, "RunService/GetRun")
    one.set("breaker_open", 1, "gpt")
    other.set("breaker_open", 0, "gpt")
    other.set("breaker_open", 0, "llama")
    with one.served() as first, other.served() as second:
        replicas = of(first, second, nobody)
        await replicas.look()
        one.count("runs_ended", "completed", "m", "m", "default", by=3)
        other.count("runs_ended", "failed", "m", "m", "default", by=1)
        other.count("runs_ended", "cancelled", "m", "m", "default", by=4)
        one.count("thread_cache_reads", "hit", by=9)
        one.count("thread_cache_reads", "stale", by=2)
        other.count("thread_cache_reads", "miss", by=1)
        other.count("thread_cache_reads", "error", by=1)
        one.count("limiter_decisions", "tenant", "requests", "refused")
        one.count("limiter_decisions", "tenant", "requests", "granted", by=50)
        one.first_event_seconds.labels("m").observe(0.5)
        view = await replicas.look()
    fleet = view.fleet
    assert (fleet.replicas, fleet.reachable, fleet.queue_runs, fleet.queue_oldest_seconds) == (3, 2, 7, 12.5)
    assert fleet.success == 0.75
    assert fleet.runs_ended.keys() == {"completed", "failed", "cancelled"}
    assert fleet.runs_ended["completed"] > 0
    assert fleet.refusals.keys() == {"tenant"}
    assert fleet.cache_hits == 0.7
    assert fleet.first_event_p50 == pytest.approx(0.55)
    assert fleet.run_seconds_p50 is None
    assert fleet.breakers == {"gpt": "open on 1 of 2"}
    assert (fleet.redis_reached_by, fleet.limits_shared_by, fleet.currency) == (2, 1, "EUR")
    assert [(one.name, one.state, one.problem) for one in view.replicas] == [
        (first, "ready", ""),
        (second, "draining", ""),
        (nobody, "", "no answer"),
    ]
    assert (view.replicas[0].slots_busy, view.replicas[0].slots, view.replicas[0].streams) == (40, 256, 5)
    assert view.replicas[0].memory_bytes == 123e6


async def test_queue_is_unknown_where_no_replica_tells_of_it() -> None:
    async with ScriptedUpstream(script=default_script()) as upstream:
        view = await of(upstream.base_url).look()
    assert (view.fleet.queue_runs, view.fleet.queue_oldest_seconds) == (None, None)
    assert "- runs wait, the oldest for -" in "\n".join(drawn(view))


async def test_first_look_has_no_rates() -> None:
    replica = Metered()
    replica.count("rpcs", "RunService/GetRun", "OK", by=4)
    with replica.served() as address:
        view = await of(address).look()
    assert view.replicas[0].rpcs is None
    assert view.fleet.runs_created is None
    assert "- created/s" in "\n".join(drawn(view))


async def test_replica_that_comes_back_after_its_restart_counts_from_0() -> None:
    before, after = Metered(started_at=1.0), Metered(started_at=2.0)
    before.count("stream_events", by=1_000_000)
    with before.served() as address:
        replicas = of(address)
        await replicas.look()
        port = address.rpartition(":")[2]
    assert (await replicas.look()).replicas[0].problem == "no answer"
    after.count("stream_events", by=1)
    with after.served(port=int(port)):
        events = (await replicas.look()).replicas[0].events
    assert events is not None
    assert 0 < events < 1_000_000


async def test_replica_that_accepts_and_says_nothing_does_not_hold_up_the_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, Metered().served() as address:
        view = await of(f"127.0.0.1:{silent.getsockname()[1]}", address, timeout=0.3).look()
    assert [(one.state, one.problem) for one in view.replicas] == [("", "no answer in time"), ("ready", "")]


async def test_server_that_gives_no_metrics_is_told() -> None:
    async with ScriptedUpstream(script=default_script()) as upstream:
        view = await of(upstream.base_url, f"{upstream.base_url}/models").look()
    assert [one.problem for one in view.replicas] == ["HTTP 404", "what it says are no metrics"]


async def test_name_stands_for_all_its_addresses_and_unknown_ones_are_told() -> None:
    with Metered().served() as address:
        port = address.rpartition(":")[2]
        view = await of(names=(f"localhost:{port}", f"no-such-host.invalid:{port}")).look()
    assert f"127.0.0.1:{port}" in {one.name for one in view.replicas if one.state == "ready"}
    assert view.replicas[-1].problem == "nobody knows this name"


def test_once_prints_tables_and_fails_where_nobody_answers(nobody: str) -> None:
    with Metered().served() as address:
        seen = call(address, nobody, "--once", "--interval", "0.1")
    assert seen.exit_code == 0
    assert "1 of 2 answer" in seen.stdout
    assert any(line.split()[:3] == [address, "all", "ready"] for line in seen.stdout.splitlines())
    assert call(nobody, "--once", "--interval", "0.1").exit_code == 1


def test_rates_of_once_are_those_between_its_two_looks() -> None:
    replica = Metered()
    replica.count_scrapes()
    with replica.served() as address:
        seen = json.loads(call(address, "--json", "--interval", "0.5").stdout)
    [figures] = seen["replicas"]
    # One event between two scrapes that are half a second apart, or a little more on a busy machine.
    assert 0 < figures["events"] <= 2.0
    assert seen["fleet"]["reachable"] == 1


def test_without_an_address_the_settings_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAMULUS_CONFIG", raising=False)
    with Metered().served() as address:
        monkeypatch.setenv("FAMULUS_METRICS_LISTEN", address)
        assert address in call("--once", "--interval", "0.1").stdout
    monkeypatch.setenv("FAMULUS_METRICS_LISTEN", "")
    assert "[metrics] listen is empty" in call("--once").stderr


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("10.0.0.7", "http://10.0.0.7:9464/metrics"),
        ("host:99", "http://host:99/metrics"),
        ("[::1]:99", "http://[::1]:99/metrics"),
        ("http://host:99/", "http://host:99/metrics"),
        ("https://host/deep/metrics", "https://host:443/deep/metrics"),
    ],
)
def test_of_an_address_a_part_may_be_said(address: str, url: str) -> None:
    assert metrics_url(address) == url


@pytest.mark.parametrize("address", ["", "ftp://host/", "host:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    assert call(address, "--once").exit_code == 2
