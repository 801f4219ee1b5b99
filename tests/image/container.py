"""An image started as a container runtime would: in namespaces of its own, on a read-only root, without capabilities.

It takes util-linux alone, so that it works where there is neither a daemon nor a cgroup to write to.
"""

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from command import PROGRAM, SECONDS, Running, environment

SETTINGS = "/etc/famulus"
REDIS = "/run/famulus"
# Volumes lie over folders of the image; the rest of it is read-only. `localhost` is a name that runtimes bring along.
_START = f"""
root=$1 user=$2 workdir=$3 data=$4 settings=$5 redis=$6; shift 6
mkdir -p "$root{SETTINGS}" "$root{REDIS}"
echo '127.0.0.1 localhost' >"$root/etc/hosts"
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmp "$root/tmp"
mount --bind "$data" "$root$workdir"
mount --bind "$settings" "$root{SETTINGS}"
mount --bind "$redis" "$root{REDIS}"
mount -o remount,bind,ro "$root"
ip link set lo up
exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,+sys_chroot,+setuid,+setgid \\
    chroot --userspec="$user" --groups= "$root" env --ignore-environment --chdir="$workdir" "$@"
"""
_NAMESPACES = ("--pid", "--net", "--mount", "--uts", "--ipc", "--fork", "--kill-child")


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image, unpacked. `history` tells how it was built."""

    rootfs: Path
    config: Mapping[str, Any]
    history: str

    @property
    def owner(self) -> tuple[int, int]:
        """The user and the group it runs as."""
        uid, _, gid = self.config["User"].partition(":")
        return int(uid), int(gid)

    def paths(self) -> list[Path]:
        """Everything in it, and nothing behind a link."""
        return [Path(parent, name) for parent, folders, files in os.walk(self.rootfs) for name in (*folders, *files)]

    def read(self, pattern: str) -> str:
        """The only file of that pattern."""
        [found] = self.rootfs.glob(pattern)
        return found.read_text(encoding="utf-8")


class Container:
    """A container while it is entered. `folder` gets its data, `settings` is its configuration file, and `redis` the
    folder with the socket of one."""

    def __init__(self, image: Image, *arguments: str, folder: Path, redis: Path, settings: str = "") -> None:
        data, configuration = folder / "data", folder / "settings"
        for volume in (data, configuration):
            volume.mkdir(exist_ok=True)
        (configuration / "famulus.toml").write_text(settings, encoding="utf-8")
        os.chown(data, *image.owner)
        self._env = [*image.config["Env"], *([f"FAMULUS_CONFIG={SETTINGS}/famulus.toml"] if settings else [])]
        volumes = map(str, (data, configuration, redis))
        prepared = (str(image.rootfs), image.config["User"], image.config["WorkingDir"], *volumes)
        command = (*image.config["Entrypoint"], *(arguments or image.config["Cmd"]))
        self._running = Running(
            *(*prepared, *self._env, *command),
            env=environment(),
            program=("unshare", *_NAMESPACES, "sh", "-euc", _START, "sh"),
        )
        self.stderr = self._running.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What has changed its user is not told when its parent dies.
        for process in self._running.process.children() if self._running.process.is_running() else ():
            process.kill()
        if kind is not None:
            print(*self._running.stdout, *self._running.stderr, sep="\n")  # noqa: T201 - shown where a test fails
        self._running.__exit__(kind, error, trace)

    @property
    def first_process(self) -> psutil.Process:
        """The process that has the number 1 in there."""
        [process] = self._running.process.children()
        return process

    def line(self, containing: str, *, on: str = "stdout") -> str:
        """The first line with this text, as soon as there is one."""
        return self._running.line(containing, on=on)

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, as a health check is run."""
        uid, gid = self._running_as
        entered = ("--all", "--root", f"--wd=/proc/{self.first_process.pid}/root", f"--setuid={uid}", f"--setgid={gid}")
        return self._enter(*entered, "env", "--ignore-environment", *self._env, *command)

    def call(self, *arguments: str, token: str = "") -> subprocess.CompletedProcess[str]:
        """Runs our command of this machine where the ports of the container are."""
        return self._enter("--net", "env", f"FAMULUS_TOKEN={token}", PROGRAM, *arguments)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code after this signal."""
        self.first_process.send_signal(number)
        return self._running.wait()

    def wait(self) -> int:
        """The exit code of one that ends by itself."""
        return self._running.wait()

    @property
    def _running_as(self) -> tuple[int, int]:
        return self.first_process.uids().real, self.first_process.gids().real

    def _enter(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--target={self.first_process.pid}", *arguments],
            check=False,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
