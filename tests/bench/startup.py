"""W8: how long a server takes until it is healthy, and what an installation takes up."""

import asyncio
import contextlib
import os
import statistics
import time
from importlib import metadata
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from packaging.requirements import Requirement

from bench.asking import CHANNEL_OPTIONS
from bench.plan import Plan
from bench.processes import famulus
from bench.results import Chart, Results
from bench.servers import server
from bench.stage import Stage
from famulus_server.embedded.weights import cache_dir, find_weights

_PRODUCT, _EXTRA = "famulus-server", "embedded"
_ROOT = Path(__file__).parents[2]
# Installed in place, so that no list says which files are theirs.
_SOURCES = {_PRODUCT: _ROOT / "server/famulus_server", "famulus": _ROOT / "clients/python/src/famulus"}


async def measure(stage: Stage, plan: Plan) -> Results:
    """From the start of the process on an empty data directory to the answer SERVING for `readiness`; files that the
    machine has read before are in its memory."""
    results = Results()
    ways: dict[str, list[float]] = {"models elsewhere": [], "restart": []}
    has_weights = find_weights(cache_dir(os.environ)) is not None
    if has_weights:
        ways["local model"] = []
    else:
        results.skipped.append("W8 was NOT measured with the local model: its weights are not in the cache")
    for number in range(plan.launches):
        folder = stage.folder / f"start-{number}"
        ways["models elsewhere"].append(await _start(stage, folder))
        ways["restart"].append(await _restart(folder))
        if has_weights:
            ways["local model"].append(await _start_alone(stage.folder / f"alone-{number}"))
    medians = {way: statistics.median(times) for way, times in ways.items()}
    size, packages = installed()
    results.figures = {
        "w8_start_s": medians["models elsewhere"],
        "w8_restart_s": medians["restart"],
        "w8_installed_mb": size / 1e6,
        "w8_packages": packages,
    }
    if has_weights:
        results.figures["w8_start_with_local_model_s"] = medians["local model"]
    results.charts.append(
        Chart(
            name="w8",
            title="W8: from the start of the process to healthy",
            x="",
            y="seconds",
            steps=list(medians),
            lines={"famulus": list(medians.values())},
            bars=True,
        )
    )
    return results


async def _start(stage: Stage, folder: Path) -> float:
    """SQLite and Valkey are embedded, the model is somewhere else."""
    start = time.perf_counter()
    async with server(folder, stage.around) as program:
        await _healthy(program.address)
        return time.perf_counter() - start


async def _restart(folder: Path) -> float:
    """The same once more, with what it has kept."""
    start = time.perf_counter()
    async with famulus("--config", str(folder / "famulus.toml"), "serve", log=folder / "log") as program:
        await _healthy(program.address)
        return time.perf_counter() - start


async def _start_alone(folder: Path) -> float:
    """Without any settings it also starts the small language model."""
    start = time.perf_counter()
    arguments = ("serve", "--listen", "127.0.0.1:0", "--data-dir", str(folder))
    async with famulus(*arguments, log=folder.with_suffix(".log")) as program:
        await _healthy(program.address)
        return time.perf_counter() - start


async def _healthy(address: str) -> None:
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        health, request = HealthStub(channel), HealthCheckRequest(service="readiness")
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                if (await health.Check(request)).status == HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(0.005)


def installed() -> tuple[int, int]:
    """Bytes and packages of the server with all that it needs, this one included; compiled files are not counted."""
    wanted, names = [Requirement(f"{_PRODUCT}[{_EXTRA}]")], set[str]()
    while wanted:
        requirement = wanted.pop()
        found = metadata.distribution(requirement.name)
        names.add(found.name.lower())
        extras = requirement.extras or {""}
        for text in found.requires or ():
            needed = Requirement(text)
            applies = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras)
            if applies and (needed.name.lower() not in names or needed.extras):
                names.add(needed.name.lower())
                wanted.append(needed)
    return sum(_bytes(name) for name in names), len(names)


def _bytes(name: str) -> int:
    """What a distribution takes on disk; of one that is installed in place, its packages."""
    found = metadata.distribution(name)
    folder = _SOURCES.get(name)
    if folder is not None:
        files = [path for path in folder.rglob("*") if path.is_file()]
    else:
        files = [Path(str(file.locate())) for file in found.files or ()]
    return sum(file.stat().st_size for file in files if file.suffix != ".pyc" and file.exists())
