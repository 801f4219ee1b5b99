"""The table, the line of JSON, and docs/benchmarks.md with its charts."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.charts import draw
from bench.results import Results
from bench.targets import TARGETS

_BEGIN, _END = "<!-- measured: written by `make bench` -->", "<!-- end of what was measured -->"
_BUSY = 0.85
_FULL = 0.92
# Of all cores: with more than this used by others, times say little, and ratios not much.
_DISTURBING = 0.1


def table(results: Results, cores: int) -> str:
    """Each figure that has a target, and whether it was reached; for a terminal."""
    rows = _targets(results, cores)
    return "\n".join(f"{means:74}{found:>12}  {wanted:18}{verdict}" for means, found, wanted, verdict in rows)


def line(results: Results) -> str:
    """All figures as one line of JSON: those with a target first, as null where they were not measured."""
    figures: dict[str, float | None] = {target.key: None for target in TARGETS}
    figures |= results.figures
    return json.dumps({key: value if value is None else round(value, 3) for key, value in figures.items()})


def write(results: Results, machine: Mapping[str, str], command: str, cores: int, page: Path) -> None:
    """Puts what was measured between the marks of the page, and the charts into the folder beside it."""
    folder = page.with_suffix("")
    folder.mkdir(exist_ok=True)
    for chart in results.charts:
        (folder / f"{chart.name}.svg").write_text(draw(chart))
    text = page.read_text()
    measured = f"{_BEGIN}\n\n{_measured(results, machine, command, cores, folder.name)}\n\n{_END}"
    whole = re.compile(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", re.DOTALL)
    if not whole.search(text):
        raise ValueError(f"{page} has no marks for what is measured")
    page.write_text(whole.sub(lambda _: measured, text))


def limiting(cores_of: Mapping[str, float], cores: int) -> str:
    """Who could not do more: a process with one thread of Python does not use more than one core."""
    busiest = max((part for part in cores_of if part != "others"), key=lambda part: cores_of[part])
    if cores_of[busiest] >= _BUSY:
        return f"the {busiest}"
    if sum(cores_of.values()) >= _FULL * cores:
        return "the machine"
    return "nobody: waiting"


def disturbed(situations: Mapping[str, Mapping[str, float]], cores: int) -> str:
    """What to say where something else kept the machine busy; empty where nothing did."""
    busy = {name: used["others"] for name, used in situations.items() if used["others"] > _DISTURBING * cores}
    if not busy:
        return ""
    return f"The machine was NOT quiet: others used up to {max(busy.values()):.1f} cores, in {len(busy)} situations"


def _measured(results: Results, machine: Mapping[str, str], command: str, cores: int, folder: str) -> str:
    parts = ["\n".join(f"- {name}: {value}" for name, value in {"command": f"`{command}`", **machine}.items())]
    parts += [f"**{said}**" for said in (disturbed(results.cores, cores), *results.skipped) if said]
    parts.append(_rows(("figure", "found", "wanted", ""), _targets(results, cores)))
    parts.append("## Who was busy\n\nCores that each part used, on average; `others` is what else ran on the machine.")
    parts.append(_busy(results.cores, cores))
    parts.append("## How it grows")
    parts += [
        f"![{chart.title}]({folder}/{chart.name}.svg)" for chart in sorted(results.charts, key=lambda chart: chart.name)
    ]
    if results.profiles:
        parts.append("## Where the server's time goes\n\nShares of the samples of py-spy in which it did something.")
    for profile in results.profiles:
        shares = [(f"`{name}`", f"{share:.1%}") for name, share in profile.functions]
        parts.append(f"{profile.title}:\n\n{_rows(('function', 'share'), shares)}")
    parts.append("## All figures")
    parts.append(
        _rows(("key", "found"), [(f"`{key}`", _shown(value)) for key, value in sorted(results.figures.items())])
    )
    return "\n\n".join(parts)


def _targets(results: Results, cores: int) -> list[tuple[str, str, str, str]]:
    return [
        (target.means, _shown(results.figures.get(target.key)), target.wanted, target.verdict(results.figures, cores))
        for target in TARGETS
    ]


def _busy(situations: Mapping[str, Mapping[str, float]], cores: int) -> str:
    parts = list(dict.fromkeys(part for used in situations.values() for part in used))
    rows = [
        (name, *(f"{used[part]:.2f}" if part in used else "" for part in parts), limiting(used, cores))
        for name, used in sorted(situations.items())
    ]
    return _rows(("", *parts, "who limits"), rows)


def _rows(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:,.2f}"
