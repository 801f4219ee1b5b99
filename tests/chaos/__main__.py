"""`python -m chaos`: a long trial, and the mutations that prove it can fail. The last line is JSON."""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from pathlib import Path

import click

from chaos.audit import shown
from chaos.cluster import LEASE_SECONDS
from chaos.journal import Journal
from chaos.mutations import MUTATIONS
from chaos.trial import MUTATION_SECONDS, Figures, Plan, conduct, is_caught

# In a trial that is counted in runs, this many replicas are killed per run, at least.
_KILLS_PER_RUN = 0.05


def main() -> int:
    """The exit code: 0 if nothing was violated and every mutation was caught."""
    asked = _arguments()
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(1_000_000)
    click.echo(f"seed {seed}: repeat with --seed {seed}")
    totals = {"runs": 0, "kills": 0, "freezes": 0, "takeovers": 0, "violations": 0}
    if asked.runs or asked.seconds:
        plan = Plan(seed=seed, runs=asked.runs, kills=round(asked.runs * _KILLS_PER_RUN), seconds=asked.seconds)
        journal, figures = asyncio.run(conduct(plan, say=_say, keep=_folder(asked.keep, "trial")))
        click.echo(shown(journal.violations))
        _print_figures(figures)
        _keep(journal, _folder(asked.keep, "trial"))
        totals |= {name: getattr(figures, name) for name in ("runs", "kills", "freezes", "takeovers")}
        totals["violations"] = len(journal.violations)
    caught = [name for name in asked.mutations if _is_caught(name, seed, _folder(asked.keep, name))]
    totals |= {"mutations_caught": len(caught), "mutations": len(asked.mutations)}
    click.echo(json.dumps(totals))
    return int(totals["violations"] > 0 or len(caught) < len(asked.mutations))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=0, help="so many runs, and a kill for every twenty of them")
    parser.add_argument("--seconds", type=float, default=0.0, help="at least so long")
    parser.add_argument("--seed", type=int, help="repeats the choices of an earlier trial")
    parser.add_argument("--keep", type=Path, help="keep logs and violations in this folder")
    parser.add_argument(
        "--mutations",
        nargs="*",
        choices=sorted(MUTATIONS),
        default=sorted(MUTATIONS),
        help="mutations to catch; none: only the trial",
    )
    return parser.parse_args()


def _is_caught(name: str, seed: int, keep: Path | None) -> bool:
    plan = Plan(seed=seed, seconds=MUTATION_SECONDS, mutation=name)
    journal, _ = asyncio.run(conduct(plan, say=_say, keep=keep))
    _keep(journal, keep)
    caught = is_caught(name, journal)
    shows = [violation for violation in journal.violations if violation.rule in MUTATIONS[name].shows]
    click.echo(f"mutation {name}: {'caught' if caught else 'NOT CAUGHT'}")
    click.echo(shown(shows or journal.violations, 1)[:600])
    return caught


def _print_figures(figures: Figures) -> None:
    resumes = figures.resume_seconds
    # A frozen replica may hold locks: its runs are free once it is thawed, or the database has lost patience.
    for how, takeovers in sorted(figures.takeover_seconds.items(), reverse=True):
        click.echo(
            f"takeover from a {how} replica: p50 {statistics.median(takeovers):.2f} s, max {takeovers[-1]:.2f} s "
            f"of {len(takeovers)}; the lease is {LEASE_SECONDS:g} s"
        )
    if len(resumes) > 1:
        p99 = statistics.quantiles(resumes, n=100)[-1]
        click.echo(f"resume: p50 {statistics.median(resumes) * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms of {len(resumes)}")
    click.echo(f"upstream calls per turn, where the model does not fail by itself: {figures.amplification:.2f}")


def _keep(journal: Journal, folder: Path | None) -> None:
    if folder is not None:
        (folder / "violations.txt").write_text("\n\n".join(map(str, journal.violations)))


def _folder(keep: Path | None, name: str) -> Path | None:
    if keep is None:
        return None
    folder = keep / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_STARTED = time.monotonic()


def _say(text: str) -> None:
    click.echo(f"{time.monotonic() - _STARTED:6.1f} s  {text}")


if __name__ == "__main__":
    sys.exit(main())
