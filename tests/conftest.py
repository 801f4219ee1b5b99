"""What tests of all kinds share."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from famulus_server.embedded.errors import EmbeddedUnavailable
from famulus_server.embedded.weights import cache_dir, pull_weights


@pytest.fixture(scope="session")
def weights() -> Path:
    """The local model's weights, downloaded where they are not there yet."""

    def say(done: int, total: int) -> None:
        sys.stderr.write(f"\rweights: {done * 100 // total} %")

    try:
        return asyncio.run(pull_weights(cache_dir(os.environ), environ=os.environ, progress=say))
    except EmbeddedUnavailable as unavailable:
        pytest.skip(f"the local model was NOT tested: {unavailable}")
