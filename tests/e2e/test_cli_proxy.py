"""A proxy in the environment does not come between the parts of one machine."""

from pathlib import Path

from command import Running, run, server_environment
from dead_proxy import dead_proxy


def test_everything_on_one_machine_works_past_a_dead_proxy(tmp_path: Path) -> None:
    with dead_proxy() as proxied:
        env = {**server_environment(tmp_path), **proxied}
        with Running("serve", env=env) as server:
            address = server.address()
            assert run("healthcheck", "--address", address, env=env).stdout == f"{address}: readiness SERVING\n"
            chatted = run("chat", "--address", address, "--model", "scripted", "-m", "Hello", env=env)
            assert chatted.stdout == "You said: Hello\n"
