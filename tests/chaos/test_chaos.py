"""Three replicas, everything breaks, and nothing that was promised is lost. `make chaos` is the long form."""

from pathlib import Path

import pytest

from chaos.audit import shown
from chaos.mutations import MUTATIONS
from chaos.trial import MUTATION_SECONDS, Plan, conduct, is_caught

_SEED = 1


@pytest.mark.timeout(300)
async def test_a_minute_of_chaos_breaks_no_promise(tmp_path: Path) -> None:
    journal, figures = await conduct(Plan(seed=_SEED, seconds=60, kills=5), say=print, keep=tmp_path)
    assert not journal.violations, f"seed {_SEED}\n{shown(journal.violations)}"
    assert figures.runs >= 50
    assert figures.freezes >= 1
    assert figures.takeovers >= 5
    for kind in ("replica kill", "replica freeze", "replica restart", "valkey kill", "valkey freeze"):
        assert journal.counts[kind] >= 1, f"no {kind}: {journal.counts}"
    assert journal.counts["postgres restart"] >= 1
    assert journal.counts["postgres kill"] >= 1


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", sorted(MUTATIONS))
async def test_mutation_is_caught(name: str, tmp_path: Path) -> None:
    journal, _ = await conduct(Plan(seed=_SEED, seconds=MUTATION_SECONDS, mutation=name), say=print, keep=tmp_path)
    assert is_caught(name, journal), f"nobody noticed that {name} is missing\n{shown(journal.violations)}"
