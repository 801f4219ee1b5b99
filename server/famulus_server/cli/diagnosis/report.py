"""What was found, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from famulus_server.cli.diagnosis.examination import Result

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_INDENT = " " * 6


def failed(results: Sequence[Result]) -> int:
    """How many things do not work."""
    return _count(results, "fail")


def show_text(results: Sequence[Result]) -> None:
    """A line for each thing that was looked at, and one for what to do about it."""
    for result in results:
        for finding in result.findings:
            word = click.style(f"{finding.verdict.upper():<4}", fg=_COLOURS[finding.verdict])
            name = f"{result.check}, {finding.point}" if finding.point else result.check
            click.echo(f"{word}  {name}: {finding.seen}")
            if finding.remedy:
                click.echo(f"{_INDENT}-> {finding.remedy}")
    numbers = (f"{_count(results, verdict)} {verdict}" for verdict in _COLOURS)
    click.echo(f"\n{', '.join(numbers)}")


def show_json(results: Sequence[Result]) -> None:
    """The same as one object, on one line."""
    findings = [
        {
            "check": result.check,
            "point": finding.point,
            "verdict": finding.verdict,
            "seen": finding.seen,
            "remedy": finding.remedy,
        }
        for result in results
        for finding in result.findings
    ]
    click.echo(json.dumps({"ok": not failed(results), "findings": findings}))


def _count(results: Sequence[Result], verdict: str) -> int:
    return sum(finding.verdict == verdict for result in results for finding in result.findings)
