"""`doctor`: each fault is a real one, and is told with what to do about it. Here those of the server itself."""

import asyncio
import resource
from pathlib import Path
from urllib.parse import urlsplit

from click.testing import CliRunner
from msgspec.structs import replace

from credentials import Authority, Signer, jwks
from famulus_server.cli import main
from famulus_server.config import EncryptionSettings
from famulus_server.embedded.upstream import ScriptedUpstream, default_script
from famulus_server.encryption.key_sources import new_key
from famulus_server.store.schema import HEAD
from metered import Metered
from serving import ServerThread, settings_in
from unit.cli.doctor.conftest import NO_METRICS, Doctor, Provider, model, redis_at, store


async def test_nothing_is_wrong_with_the_defaults(doctor: Doctor) -> None:
    found = await doctor()
    assert found.code == 0
    assert {verdict for verdict, *_ in found.findings.values()} == {"ok"}
    assert "no" in found.seen("database")


async def test_nothing_is_wrong_with_a_server_of_replicas(
    doctor: Doctor, migrated_database: str, redis_url: str, provider: Provider
) -> None:
    text = store(migrated_database) + redis_at(redis_url) + model(provider.url, more="api_key_env = 'BIG_KEY'")
    found = await doctor(text, environ={"BIG_KEY": "sk-right"})
    assert {
        point: found.verdict("database", point) for point in ("", "schema", "role", "latency", "clock")
    } == dict.fromkeys(("", "schema", "role", "latency", "clock"), "ok")
    assert found.seen("database", "schema") == f"{HEAD}, as this version needs it"
    assert "Valkey 9" in found.seen("redis")
    assert found.verdict("redis", "memory policy") == found.verdict("redis", "memory") == "ok"
    assert (
        found.verdict("model big")
        == found.verdict("model big", "backend")
        == found.verdict("model big", "name")
        == "ok"
    )
    assert found.verdict("model big", "clock") == "ok"


async def test_certificate_that_runs_out_soon_and_a_key_that_others_may_read(doctor: Doctor, tmp_path: Path) -> None:
    cert_file, key_file = Authority().server().write(tmp_path, "server")
    await asyncio.to_thread(Path(key_file).chmod, 0o644)
    found = await doctor(f"[tls]\ncert_file = '{cert_file}'\nkey_file = '{key_file}'\n")
    assert (found.verdict("certificate"), found.verdict("certificate", "key")) == ("warn", "warn")
    assert "0 days from now" in found.seen("certificate")
    assert found.remedy("certificate", "key") == f"chmod 600 {key_file}"


async def test_certificate_that_has_run_out(doctor: Doctor, tmp_path: Path) -> None:
    cert_file, key_file = Authority().client(seconds=-60).write(tmp_path, "server")
    found = await doctor(f"[tls]\ncert_file = '{cert_file}'\nkey_file = '{key_file}'\n")
    assert (found.code, found.verdict("certificate")) == (1, "fail")
    assert "ran out on" in found.seen("certificate")


async def test_issuer_whose_keys_can_be_had(doctor: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(jwks(Signer.new("one"), Signer.new("two")))
    found = await doctor(f"[[auth.issuers]]\nissuer = 'i'\naudience = 'a'\njwks_file = '{file}'\n")
    assert (found.verdict("issuer i"), found.seen("issuer i")) == ("ok", f"{file}: 2 keys")


async def test_command_for_the_key_that_hangs_holds_up_nothing_else(doctor: Doctor) -> None:
    found = await doctor("[encryption]\nkey_command = ['sleep', '2']\n", "--timeout", "0.5")
    assert found.seen("encryption") == "no answer in 0.5 s"
    assert found.verdict("database") == "ok"


async def test_issuer_whose_keys_cannot_be_had(doctor: Doctor, unused: int) -> None:
    url = f"http://127.0.0.1:{unused}/keys.json"
    found = await doctor(f"[[auth.issuers]]\nissuer = 'i'\naudience = 'a'\njwks_url = '{url}'\n")
    assert found.seen("issuer i") == f"{url}: no answer (ConnectError)"


async def test_address_that_something_else_has(doctor: Doctor, tmp_path: Path) -> None:
    async with ScriptedUpstream(script=default_script()) as upstream:
        address = urlsplit(upstream.base_url).netloc
        found = await doctor(f"[server]\nlisten = '{address}'\ndata_dir = '{tmp_path}/data'\n")
    assert found.seen("address listen") == f"{address} is in use, by something that answers no health checks"


async def test_address_for_metrics_is_free_or_a_famulus_has_it_or_something_else(doctor: Doctor, silent: int) -> None:
    with Metered().served() as address:
        there = await doctor(environ={"FAMULUS_METRICS_LISTEN": address})
    assert there.seen("address metrics") == f"{address}: a famulus with the role all gives its metrics there"
    assert "is free" in (await doctor(environ={"FAMULUS_METRICS_LISTEN": address})).seen("address metrics")
    taken = await doctor(environ={"FAMULUS_METRICS_LISTEN": f"127.0.0.1:{silent}"})
    assert (taken.code, taken.verdict("address metrics")) == (1, "fail")
    assert "gives no metrics (no answer in time)" in taken.seen("address metrics")


async def test_too_few_open_files(doctor: Doctor) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        found = await doctor()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.verdict("open files") == "warn"
    assert found.seen("open files").startswith("512 are allowed from here")


async def test_files_that_others_may_read(doctor: Doctor, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o755)
    found = await doctor()
    assert found.remedy("files") == f"chmod 700 {folder}"


async def test_key_of_encryption_that_the_database_does_not_need_but_another_one(
    doctor: Doctor, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path / "data")
    right, wrong = tmp_path / "right.key", tmp_path / "wrong.key"
    for file in (right, wrong):
        file.write_text(new_key())
        file.chmod(0o600)
    server = ServerThread(replace(settings, encryption=EncryptionSettings(key_file=str(right))))
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(server.stop)
    assert (await doctor(f"[encryption]\nkey_file = '{right}'\n")).verdict("encryption", "keys in use") == "ok"
    found = await doctor(f"[encryption]\nkey_file = '{wrong}'\n")
    assert found.verdict("encryption", "keys in use") == "fail"
    assert (await doctor()).verdict("encryption", "keys in use") == "fail"
    wrong.unlink()
    assert (await doctor(f"[encryption]\nkey_file = '{wrong}'\n")).verdict("encryption", "keys") == "fail"


async def test_settings_that_cannot_be_read_are_the_only_finding(doctor: Doctor) -> None:
    found = await doctor("[sever]\n")
    assert (found.code, len(found.findings)) == (1, 1)
    assert "unknown section" in found.seen("settings")


async def test_settings_that_no_server_starts_with_do_not_keep_the_rest_from_being_looked_at(doctor: Doctor) -> None:
    found = await doctor("[redis]\nurl = 'redis://far.example'\n", environ={"FAMULUS_SERVER_ROLE": "worker"})
    assert "SQLite serves one process" in found.seen("settings")
    assert found.verdict("database") == "ok"


def test_text_has_a_line_for_each_finding_and_one_for_each_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    env = {
        "FAMULUS_CONFIG": None,
        "FAMULUS_SERVER_DATA_DIR": str(folder),
        "FAMULUS_SERVER_LISTEN": "127.0.0.1:0",
        **NO_METRICS,
        "FAMULUS_EMBEDDED_LOCAL_MODEL": "off",
    }
    shown = CliRunner(env=env).invoke(main, ["doctor"])
    assert (shown.exit_code, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    at = lines.index(f"WARN  files: others than its owner may read {folder}")
    assert lines[at + 1] == f"      -> chmod 700 {folder}"
    assert lines[-1].endswith(" ok, 1 warn, 0 fail")
