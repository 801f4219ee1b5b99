"""The configured models."""

import subprocess
import sys

import pytest

from famulus_server.models.registry import ModelRegistry
from famulus_server.models.settings import ModelSettings
from famulus_server.telemetry.metrics import Measurements


def test_registry_is_made_without_importing_the_sdk() -> None:
    # Importing it takes longer than the rest of the server's start.
    code = (
        "import sys, famulus_server.models.registry as r, famulus_server.telemetry.metrics as m; "
        "r.ModelRegistry(settings=[], metrics=m.Measurements()); exit('openai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sdk_is_never_looked_through_for_garbage() -> None:
    code = (
        "import asyncio, gc, famulus_server.models.connection as c; "
        "before = len(gc.get_objects()); asyncio.run(c.load_sdk()); "
        "exit(gc.get_freeze_count() < 50_000 or len(gc.get_objects()) > before)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_models_of_one_name_are_refused() -> None:
    model = ModelSettings(name="m", backend="chat", base_url="http://127.0.0.1")
    with pytest.raises(ValueError, match="same name"):
        ModelRegistry(settings=[model, model], metrics=Measurements())


def test_unknown_model_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        ModelRegistry(settings=[], metrics=Measurements()).open("m")
