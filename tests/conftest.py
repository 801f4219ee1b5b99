"""What tests of all kinds share."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture.providers import HypothesisProvider

from famulus_server.coordination import patience
from famulus_server.embedded.errors import EmbeddedUnavailable
from famulus_server.embedded.weights import cache_dir, pull_weights
from postgres import empty_database, migrated_database, new_database, postgres_server, postgres_url

__all__ = ["empty_database", "migrated_database", "new_database", "postgres_server", "postgres_url"]

# The same examples every time, unless HYPOTHESIS_PROFILE=random asks for others; then failures are shrunk, too.
settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "random",
    settings.get_profile("repeatable"),
    derandomize=False,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
_PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "repeatable")
settings.load_profile(_PROFILE)
if _PROFILE == "repeatable":
    # It strews in constants from the code of all modules that happen to be imported: the examples would be others with
    # each test that runs before, and with each change of the product.
    HypothesisProvider._maybe_draw_constant = lambda *_, **__: None  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def weights() -> Path:
    """The local model's weights, downloaded where they are not there yet."""

    def say(done: int, total: int) -> None:
        sys.stderr.write(f"\rweights: {done * 100 // total} %")

    try:
        return asyncio.run(pull_weights(cache_dir(os.environ), environ=os.environ, progress=say))
    except EmbeddedUnavailable as unavailable:
        pytest.skip(f"the local model was NOT tested: {unavailable}")


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks Redis for a caller waits longer than for a caller: for tests of what is read and counted, on machines
    that stand still now and then."""
    monkeypatch.setattr(patience, "_SECONDS", 10.0)
