"""The image at work: on a read-only root, as nobody in particular, with process number 1."""

import re
from pathlib import Path

import psutil

from famulus_server.identity.settings import hash_of_key
from image.container import REDIS, Container, Image

KEY = "fam_a-key-of-the-tests"
CALLERS = f"""
[auth]
plaintext = true
[[auth.keys]]
name = "test"
tenant = "default"
roles = ["operator"]
sha256 = "{hash_of_key(KEY)}"
[embedded]
local_model = "off"
scripted_model = "on"
"""
WITH_REDIS = f"""
[redis]
url = "unix://{REDIS}/valkey.sock"
"""


def test_container_converses_and_stops_when_it_is_told_to(production: Image, redis: Path, tmp_path: Path) -> None:
    with Container(production, folder=tmp_path, redis=redis, settings=CALLERS + WITH_REDIS) as container:
        converse(container)
        assert container.stop() == 0


def test_container_brings_all_it_needs_where_it_has_the_extra(embedded: Image, redis: Path, tmp_path: Path) -> None:
    with Container(embedded, folder=tmp_path, redis=redis, settings=CALLERS) as container:
        converse(container)
        children = container.first_process.children(recursive=True)
        assert any("valkey" in child.name() for child in children)
        assert container.stop() == 0
    assert not any(child.is_running() for child in children)


def converse(container: Container) -> None:
    """What a deployment does first: is it healthy, who are you, and do you remember what I said?"""
    assert container.line("famulus serves").split()[2] == "0.0.0.0:7461"
    healthy = container.execute("famulus-server", "healthcheck")
    assert (healthy.returncode, healthy.stdout) == (0, "localhost:7462: readiness SERVING\n"), healthy.stderr
    for name in ("startup", "liveness", "readiness"):
        probed = container.call("healthcheck", "--address", "127.0.0.1:7462", "--service", name)
        assert probed.returncode == 0, probed.stdout
    first = container.call("chat", "--address", "127.0.0.1:7461", "--message", "Hello there", token=KEY)
    assert first.returncode == 0, first.stderr
    assert "Hello there" in first.stdout
    [thread] = re.findall(r"thread_\w+", first.stderr)
    second = container.call(
        "chat", "--address", "127.0.0.1:7461", "--thread", thread, "--message", "Hello again", token=KEY
    )
    assert (second.returncode, "Hello again" in second.stdout) == (0, True), second.stderr
    stranger = container.call("chat", "--address", "127.0.0.1:7461", "--message", "Hello", token="another")
    assert stranger.returncode == 1


def test_process_has_no_rights_and_can_write_to_its_volumes_only(
    production: Image, redis: Path, tmp_path: Path
) -> None:
    with Container(production, folder=tmp_path, redis=redis, settings=CALLERS + WITH_REDIS) as container:
        container.line("famulus serves")
        status = Path(f"/proc/{container.first_process.pid}/status").read_text()
        rights = dict(re.findall(r"^(Cap\w+|NoNewPrivs|Uid|NSpid):\s+(.*)$", status, re.MULTILINE))
        assert int(rights["CapEff"], 16) == int(rights["CapPrm"], 16) == 0
        assert rights["NoNewPrivs"] == "1"
        assert set(rights["Uid"].split()) == {"10001"}
        assert rights["NSpid"].split()[-1] == "1"
        for folder in ("/", "/etc", "/opt/famulus", "/var/cache/famulus"):
            assert container.execute("touch", f"{folder}/x").returncode != 0, folder
        for folder in ("/tmp", "/var/lib/famulus"):
            assert container.execute("touch", f"{folder}/x").returncode == 0, folder


def test_start_that_nobody_is_let_in_for_is_refused_and_says_why(
    production: Image, redis: Path, tmp_path: Path
) -> None:
    with Container(production, folder=tmp_path, redis=redis) as container:
        assert container.wait() == 2
        assert "Configure [auth]" in container.stderr[-1]


def test_production_image_says_that_it_needs_a_redis(production: Image, redis: Path, tmp_path: Path) -> None:
    with Container(production, folder=tmp_path, redis=redis, settings=CALLERS) as container:
        assert container.wait() == 1
        assert "name a Redis or Valkey server" in container.stderr[-1]


def test_first_process_has_its_children_buried(embedded: Image, redis: Path, tmp_path: Path) -> None:
    with Container(embedded, folder=tmp_path, redis=redis, settings=CALLERS) as container:
        container.line("famulus serves")
        [valkey] = [child for child in container.first_process.children(recursive=True) if "valkey" in child.name()]
        valkey.kill()
        container.line("embedded server runs again", on="stderr")
        children = container.first_process.children(recursive=True)
        assert [child for child in children if child.status() == psutil.STATUS_ZOMBIE] == []
        assert container.stop() == 0
