"""A real Prometheus that scrapes servers on this machine every second and has the rules that ship."""

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from monitoring.ports import free_port
from monitoring.rules import RULES, program

_START_SECONDS = 20.0


class QueryRefused(Exception):
    """Prometheus did not take a query; its own words."""


class Prometheus:
    """How to ask it. Series are dicts of Prometheus's HTTP API: `metric` and `value` or `values`."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, query: str, at: float) -> list[dict[str, Any]]:
        """The series at a moment, in seconds since 1970. Raises QueryRefused."""
        found: list[dict[str, Any]] = self.get("query", query=query, time=f"{at:.3f}")["result"]
        return found

    def ask_range(self, query: str, since: float, until: float, step: float) -> list[dict[str, Any]]:
        """The series from one moment to another. Raises QueryRefused."""
        asked = {"query": query, "start": f"{since:.3f}", "end": f"{until:.3f}", "step": f"{step:g}"}
        found: list[dict[str, Any]] = self.get("query_range", **asked)["result"]
        return found

    def get(self, what: str, **asked: str) -> Any:
        """What the API says. Raises QueryRefused."""
        body = urllib.parse.urlencode(asked).encode()
        address = f"{self._address}/api/v1/{what}"
        try:
            # Queries are long: they go as a form, all else has no parameters.
            with urllib.request.urlopen(address, data=body or None, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise QueryRefused(error.read().decode()) from error

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self._address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextlib.contextmanager
def open_prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """Starts one; what it keeps is in the folder."""
    config = folder / "prometheus.yml"
    seconds = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    scraped = {"job_name": "famulus", "static_configs": [{"targets": list(targets)}]}
    text = {"global": seconds, "rule_files": [str(RULES)], "scrape_configs": [scraped]}
    config.write_text(yaml.safe_dump(text), encoding="utf-8")
    listen = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={listen}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        prometheus = Prometheus(f"http://{listen}")
        give_up = time.monotonic() + _START_SECONDS
        while not prometheus.is_ready():
            told = (folder / "prometheus.log").read_text()
            assert process.poll() is None, told
            assert time.monotonic() < give_up, told
            time.sleep(0.05)
        yield prometheus
    finally:
        process.terminate()
        process.wait()
