"""Makes all checks side by side; none can hold up the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from famulus_server.cli.diagnosis.findings import Check, Finding, fail

Waiting = Callable[[Sequence[str]], None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that a check found."""

    check: str
    findings: Sequence[Finding]


async def examine(checks: Sequence[Check], *, waiting: Waiting) -> list[Result]:
    """What all of them found, in their order. `waiting` is told the names of those that are still at it."""
    tasks = {asyncio.create_task(_make(check)): check.name for check in checks}
    pending = set(tasks)
    while pending:
        waiting([name for task, name in tasks.items() if task in pending])
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    waiting([])
    return [task.result() for task in tasks]


async def _make(check: Check) -> Result:
    try:
        async with asyncio.timeout(check.seconds):
            return Result(check=check.name, findings=await check.look())
    except TimeoutError:
        late = fail("", f"no answer in {check.seconds:g} s", check.when_late)
        return Result(check=check.name, findings=[late])
    except Exception as error:  # noqa: BLE001 - one that fails must not take the others with it
        # Its text may hold anything.
        seen = f"the check itself failed: {type(error).__name__}"
        return Result(check=check.name, findings=[fail("", seen, "This is a defect of doctor; please report it.")])
