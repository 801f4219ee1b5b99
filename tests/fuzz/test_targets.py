"""The targets of `make fuzz` take what they begin with, and what once failed."""

import importlib
import pkgutil
from typing import Any

import pytest

from fuzz import targets

TARGETS = [module.name for module in pkgutil.iter_modules(targets.__path__)]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(f"fuzz.targets.{request.param}")


def test_target_takes_its_seeds_and_what_is_left_of_them(target: Any) -> None:
    assert target.SEEDS
    for seed in target.SEEDS:
        for end in (len(seed), len(seed) // 2, 1, 0):
            target.try_input(seed[:end])
