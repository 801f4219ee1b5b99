"""W1: runs of 500 deltas at once, as fast as possible."""

from bench.load import Load, System, in_batches
from bench.plan import Plan
from bench.results import Chart, Results
from bench.stage import Stage

AT_ONCE = 8


async def measure(stage: Stage, plan: Plan) -> Results:
    """Events are deltas of text, in all systems alike."""
    results = Results()
    systems = [await stage.famulus(), await stage.bare()]
    if (litellm := await stage.litellm()) is not None:
        systems.append(litellm)
    loads = {(system.name, runs): Load() for system in systems for runs in plan.runs}
    for system in systems:
        await system.ask("many")
    for _ in range(plan.rounds):
        for runs in plan.runs:
            for system in systems:
                load = loads[system.name, runs]
                await in_batches(system, stage.upstream, "many", at_once=runs, seconds=plan.seconds, load=load)
    ours, bare = loads["famulus", AT_ONCE], loads["bare", AT_ONCE]
    results.figures = {
        "w1_events_per_s": ours.rate,
        "w1_cpu_us_per_event": _cost(systems[0], ours),
        "w1_server_us_per_event": ours.spent.of(["server"]) / ours.deltas * 1e6,
        "w1_bare_events_per_s": bare.rate,
        "w1_bare_cpu_us_per_event": _cost(systems[1], bare),
        "w1_vs_bare": ours.rate / bare.rate,
    }
    if litellm is not None:
        theirs = loads["LiteLLM", AT_ONCE]
        results.figures |= {
            "w1_litellm_events_per_s": theirs.rate,
            "w1_litellm_cpu_us_per_event": _cost(litellm, theirs),
            "w1_vs_litellm": ours.rate / theirs.rate,
        }
    results.cores = {f"W1 {system.name}": loads[system.name, AT_ONCE].spent.cores for system in systems}
    lines = {system.name: [loads[system.name, runs].rate for runs in plan.runs] for system in systems}
    results.charts.append(
        Chart(
            name="w1",
            title="W1: deltas per second, all runs together",
            x="runs at once",
            y="deltas per second",
            steps=[str(runs) for runs in plan.runs],
            lines=lines,
        )
    )
    return results


def _cost(system: System, load: Load) -> float:
    """Microseconds of processors for each delta."""
    return load.spent.of(system.own) / load.deltas * 1e6
