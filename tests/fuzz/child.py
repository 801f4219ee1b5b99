"""Fuzzes one target until its time is up, or it fails: `python -m fuzz.child TARGET SECONDS FOLDER`."""

import importlib
import sys
from pathlib import Path

import atheris

_MAX_BYTES = 8_192
_HANG_SECONDS = 10
_MAX_MEMORY_MB = 2_048


def fuzz(name: str, seconds: int, folder: Path) -> None:
    """Never returns: libFuzzer ends the process, with 0 unless an input failed, which is then in the folder."""
    with atheris.instrument_imports(include=["famulus_server"]):
        target = importlib.import_module(f"fuzz.targets.{name}")
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, seed in enumerate(target.SEEDS):
        (seeds / str(number)).write_bytes(seed)
    options = {
        "max_total_time": seconds,
        "max_len": _MAX_BYTES,
        "timeout": _HANG_SECONDS,
        "rss_limit_mb": _MAX_MEMORY_MB,
        "artifact_prefix": f"{folder}/failed-",
        "print_final_stats": 1,
    }
    atheris.Setup([name, *(f"-{key}={value}" for key, value in options.items()), str(seeds)], target.try_input)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
