"""The container image, taken apart and started: `make image-check` builds it and runs these, `make test` does not."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from famulus_server.embedded.valkey import EmbeddedValkey
from image.container import Image

IMAGE = os.environ.get("IMAGE", "")
collect_ignore_glob = [] if IMAGE else ["test_*.py"]


def buildah(*arguments: str) -> str:
    return subprocess.run(["buildah", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def unpacked(name: str) -> Iterator[Image]:
    told = json.loads(buildah("inspect", "--type", "image", name))
    container = buildah("from", "--pull-never", name)
    try:
        rootfs = Path(buildah("mount", container))
        yield Image(rootfs=rootfs, config=told["Docker"]["config"], history=json.dumps(told["History"]))
    finally:
        buildah("rm", container)


@pytest.fixture(scope="session")
def production() -> Iterator[Image]:
    yield from unpacked(IMAGE)


@pytest.fixture(scope="session")
def embedded() -> Iterator[Image]:
    yield from unpacked(f"{IMAGE}-embedded")


@pytest.fixture(params=["production", "embedded"])
def image(request: pytest.FixtureRequest) -> Image:
    """Each variant."""
    found: Image = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Path]:
    """The folder with the socket of a server outside, which any user may use."""
    with asyncio.Runner() as runner:
        valkey = EmbeddedValkey(data_dir=tmp_path)
        socket = Path(runner.run(valkey.start()).removeprefix("unix://"))
        try:
            socket.parent.chmod(0o755)
            socket.chmod(0o777)
            yield socket.parent
        finally:
            runner.run(valkey.close())
