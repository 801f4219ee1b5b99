"""The installed command, as a process of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from famulus_server.embedded.weights import cache_dir, find_weights

PROGRAM = str(Path(sys.executable).with_name("famulus-server"))
SECONDS = 30.0


def has_local_model() -> bool:
    """Whether the local model can be used without a download."""
    return find_weights(cache_dir(os.environ)) is not None


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without settings of its own, and with `extra`."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FAMULUS_")}
    if "FAMULUS_CACHE_DIR" in os.environ:
        ours["FAMULUS_CACHE_DIR"] = os.environ["FAMULUS_CACHE_DIR"]
    return {**ours, "GRPC_VERBOSITY": "NONE", **(extra or {})}


def server_environment(data_dir: Path, *, local_model: bool = False, script: Path | None = None) -> dict[str, str]:
    """The settings of a server that keeps everything in `data_dir` and listens on a free port."""
    return environment(
        {
            "FAMULUS_SERVER_LISTEN": "127.0.0.1:0",
            "FAMULUS_METRICS_LISTEN": "127.0.0.1:0",
            "FAMULUS_SERVER_DATA_DIR": str(data_dir),
            "FAMULUS_EMBEDDED_LOCAL_MODEL": "on" if local_model else "off",
            "FAMULUS_EMBEDDED_SCRIPT": str(script or ""),
        }
    )


def run(*arguments: str, env: Mapping[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command's output and exit code."""
    return subprocess.run(
        [PROGRAM, *arguments],
        check=False,
        env=environment() if env is None else env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


class Running:
    """The command while it runs. `interpreter` are options of Python itself, `program` is what to start it with."""

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str],
        interpreter: tuple[str, ...] = (),
        program: tuple[str, ...] = (PROGRAM,),
    ) -> None:
        command = [*([sys.executable, *interpreter] if interpreter else ()), *program, *arguments]
        self._process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.process = psutil.Process(self._process.pid)
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._came = threading.Condition()
        self._readers = [threading.Thread(target=self._read, args=(name,)) for name in self._lines]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.wait()

    @property
    def stdout(self) -> list[str]:
        return self._lines["stdout"]

    @property
    def stderr(self) -> list[str]:
        return self._lines["stderr"]

    def line(self, containing: str, *, on: str = "stdout") -> str:
        """The first line with this text, as soon as there is one."""
        with self._came:
            self._came.wait_for(lambda: any(containing in line for line in self._lines[on]) or self._ended(), SECONDS)
            found = [line for line in self._lines[on] if containing in line]
        assert found, f"no {containing!r} in {self._lines}"
        return found[0]

    def address(self) -> str:
        """Where `serve` listens, once it does."""
        return self.line("famulus serves").split()[2]

    def descendants(self) -> list[psutil.Process]:
        return self.process.children(recursive=True)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once it has ended and all its output was read."""
        code = self._process.wait(SECONDS)
        for reader in self._readers:
            reader.join(SECONDS)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        return code

    def _read(self, name: str) -> None:
        for line in getattr(self._process, name):
            with self._came:
                self._lines[name].append(line.rstrip("\n"))
                self._came.notify_all()
        with self._came:
            self._came.notify_all()

    def _ended(self) -> bool:
        return not any(reader.is_alive() for reader in self._readers)


def all_gone(processes: list[psutil.Process]) -> bool:
    """Whether they all end in time; one that nobody has reaped yet counts as ended."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if not any(_lives(process) for process in processes):
            return True
        time.sleep(0.02)
    return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
