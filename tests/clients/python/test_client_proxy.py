"""Servers on this machine are not looked for at a proxy that the environment names."""

import pytest

from clients.python.conftest import Follow
from clients.python.scripted_runs import ScriptedRuns, serving
from clients.python.story import plain
from dead_proxy import dead_proxy
from famulus.channels import channel_options


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "localhost:{}", "dns:///127.0.0.1:{}", "ipv4:127.0.0.1:{}"])
async def test_server_on_this_machine_is_reached_past_a_dead_proxy(
    follow: Follow, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = plain()
    with serving(ScriptedRuns(log)) as target, dead_proxy() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        seen = await follow(form.format(target.rpartition(":")[2]))
    assert seen.error is None
    assert seen.events == log


@pytest.mark.parametrize(
    ("target", "direct"),
    [
        ("127.9.9.9:1", True),
        ("localhost", True),
        ("[::1]:7461", True),
        ("ipv6:[::1]:7461", True),
        ("dns://8.8.8.8/localhost:https", True),
        ("famulus:7461", False),
        ("localhost.example:7461", False),
        ("10.0.0.1:7461", False),
        ("[2001:db8::1]:7461", False),
        ("dns:///famulus.example:443", False),
        ("dns://127.0.0.1/famulus.example:443", False),
        ("unix:/run/famulus.sock", False),
    ],
)
def test_proxy_is_ruled_out_for_this_machine_only(target: str, direct: bool) -> None:
    assert ("grpc.enable_http_proxy" in dict(channel_options(target))) == direct


def test_own_option_may_insist_on_the_proxy() -> None:
    options = dict(channel_options("localhost:7461", [("grpc.enable_http_proxy", 1)]))
    assert options["grpc.enable_http_proxy"] == 1
