"""W2: runs of one delta: how long until it comes, what a run costs, and how many there can be."""

from bench.load import Load, in_turn
from bench.plan import Plan
from bench.results import Chart, Results
from bench.stage import Stage

_MANY = 16


async def measure(stage: Stage, plan: Plan) -> Results:
    """The reference is the same question to the upstream, by the SDK in the client."""
    results = Results()
    systems = [await stage.direct(), await stage.famulus(), await stage.bare()]
    if (litellm := await stage.litellm()) is not None:
        systems.append(litellm)
    loads = {(system.name, callers): Load() for system in systems for callers in plan.starts}
    for system in systems:
        for _ in range(20):
            await system.ask("one")
    for _ in range(plan.rounds):
        for callers in plan.starts:
            for system in systems:
                load = loads[system.name, callers]
                await in_turn(system, stage.upstream, "one", at_once=callers, seconds=plan.seconds, load=load)
    ours = systems[1].own
    one, many = loads["famulus", 1], loads["famulus", _MANY]
    results.figures = {
        "w2_ttfe_ms": one.first_ms,
        "w2_direct_ms": loads["direct", 1].first_ms,
        "w2_bare_ttfe_ms": loads["bare", 1].first_ms,
        "w2_ttfe_over_direct_ms": one.first_ms - loads["direct", 1].first_ms,
        "w2_ttfe_16_ms": many.first_ms,
        "w2_direct_16_ms": loads["direct", _MANY].first_ms,
        "w2_ttfe_over_direct_16_ms": many.first_ms - loads["direct", _MANY].first_ms,
        # Each of both numbers of callers has to keep to the figure.
        "w2_cpu_ms_per_run": max(load.spent.of(ours) / load.runs * 1e3 for load in (one, many)),
        "w2_cpu_ms_per_run_1": one.spent.of(ours) / one.runs * 1e3,
        "w2_cpu_ms_per_run_16": many.spent.of(ours) / many.runs * 1e3,
        "w2_runs_per_s": many.pace,
        "w2_bare_runs_per_s": loads["bare", _MANY].pace,
    }
    if litellm is not None:
        theirs = loads["LiteLLM", _MANY]
        results.figures |= {
            "w2_litellm_ttfe_ms": loads["LiteLLM", 1].first_ms,
            "w2_litellm_cpu_ms_per_run": theirs.spent.of(litellm.own) / theirs.runs * 1e3,
            "w2_litellm_runs_per_s": theirs.pace,
            "w2_runs_vs_litellm": many.pace / theirs.pace,
        }
    for system in systems:
        results.cores[f"W2 {system.name}, {_MANY} callers"] = loads[system.name, _MANY].spent.cores
    results.charts.append(
        Chart(
            name="w2",
            title="W2: time to the first delta",
            x="callers at once",
            y="ms, p50",
            steps=[str(callers) for callers in plan.starts],
            lines={system.name: [loads[system.name, n].first_ms for n in plan.starts] for system in systems},
        )
    )
    return results
