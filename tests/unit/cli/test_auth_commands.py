"""`auth new-key`, and what `config check` says of callers."""

import base64
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from credentials import Authority
from famulus_server.cli import main
from famulus_server.config import load
from famulus_server.identity.settings import hash_of_key

UNLIMITED = "tiers.default: has no limits: one caller may use up what there is for all"
ISSUER = """
[[auth.issuers]]
issuer = "https://issuer.example"
audience = "famulus"
jwks_url = "https://issuer.example/keys"
algorithms = ["RS256"]
max_lifetime = 3600
"""
KEY = '[[auth.keys]]\nname = "ci"\ntenant = "acme"\nroles = ["writer", "privacy"]\nsha256 = "' + "0" * 64 + '"\n'


def call(*arguments: str) -> Result:
    return CliRunner(env={"FAMULUS_CONFIG": None}).invoke(main, arguments)


def test_new_key_is_one_that_its_settings_know(tmp_path: Path) -> None:
    made = call("auth", "new-key", "--name", 'c"i', "--tenant", "acme", "--role", "reader", "--role", "tools")
    assert made.exit_code == 0
    file = tmp_path / "famulus.toml"
    file.write_text(made.stdout)
    [entry] = load(file, {}).auth.keys
    assert (entry.name, entry.tenant, entry.roles) == ('c"i', "acme", ("reader", "tools"))
    [key] = re.findall(r"fam_[\w-]{43}", made.stderr)
    assert entry.sha256 == hash_of_key(key)
    assert key not in made.stdout
    assert key not in call("auth", "new-key").stderr


def test_key_that_no_settings_could_have_is_refused() -> None:
    refused = call("auth", "new-key", "--tenant", "two words")
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert refused.stderr.startswith("error: command line: auth.keys.tenant: Expected `str` matching")


def check(text: str, folder: Path) -> Result:
    file = folder / "famulus.toml"
    file.write_text(text)
    return call("config", "check", str(file))


def topic(shown: Result, title: str) -> list[str]:
    assert shown.exit_code == 0, shown.stderr
    [block] = [block for block in shown.stdout.split("\n\n") if block.startswith(f"{title}\n")]
    return [line.removeprefix("  ") for line in block.strip().splitlines()[1:]]


def test_without_authentication_it_says_that_everybody_may_do_everything(tmp_path: Path) -> None:
    assert topic(check("", tmp_path), "Callers") == [
        "No TLS.",
        "Everybody who reaches the server is one caller, of the tenant default, and may do everything.",
    ]


def test_callers_are_explained_with_what_they_may_do(tmp_path: Path) -> None:
    ca = Authority()
    cert, key = ca.server().write(tmp_path, "server")
    (tmp_path / "ca.crt").write_bytes(ca.pem)
    text = f"""
    [server]
    listen = "0.0.0.0:7461"
    health_listen = "0.0.0.0:7462"
    [tls]
    cert_file = "{cert}"
    key_file = "{key}"
    client_ca_file = "{tmp_path}/ca.crt"
    [auth]
    open_reflection = true
    {ISSUER}
    {KEY}
    [[auth.certificates]]
    name = "agent"
    tenant = "acme"
    roles = ["reader"]
    spiffe = "spiffe://example.org/ns/acme/*"
    """
    shown = check(text, tmp_path)
    assert topic(shown, "Callers") == [
        f"TLS, with the certificate in {cert}.",
        f"Every client needs a certificate that the CA in {tmp_path}/ca.crt has signed.",
        "Health can also be asked for at 0.0.0.0:7462, without TLS.",
        "Everybody may ask which methods there are.",
        "Tokens of https://issuer.example for famulus, signed with RS256; keys: https://issuer.example/keys",
        "    claims: tenant in tenant, name in sub, roles in roles",
        "    speaks for any tenant",
        "ci, by a static key: tenant acme, roles writer, privacy",
        "agent, by a certificate for spiffe://example.org/ns/acme/*: tenant acme, role reader",
    ]
    assert topic(shown, "Warnings") == [UNLIMITED]


def test_what_is_perhaps_not_meant_is_warned_of(tmp_path: Path) -> None:
    cert, key = Authority().server().write(tmp_path, "server")
    tls = f"[tls]\ncert_file = '{cert}'\nkey_file = '{key}'\nclient_ca_file = '{cert}'\n"
    assert topic(check(tls, tmp_path), "Warnings") == [
        "[server] health_listen: probes that speak no TLS, as those of Kubernetes, cannot ask for health",
        "[tls] client_ca_file: all clients with a certificate are one caller, because [auth] has no rule for them",
    ]
    text = tls + "[auth]\nplaintext = true\n" + KEY.replace('"writer", "privacy"', "")
    assert topic(check(text, tmp_path), "Warnings")[1:] == [
        "[auth] plaintext: means nothing with TLS",
        "[auth] ci: has no role, and may do nothing",
        UNLIMITED,
    ]


def of_an_unknown_kind(pem: bytes) -> bytes:
    """The same with another algorithm in place of elliptic curves."""
    head, *lines, foot = pem.splitlines()
    data = base64.b64decode(b"".join(lines))
    known = bytes.fromhex("06072a8648ce3d0201")
    assert known in data
    return b"\n".join((head, base64.b64encode(data.replace(known, known[:-1] + b"\x63")), foot))


@pytest.mark.parametrize("spoiled", ["server.crt", "server.key"])
def test_certificate_or_key_of_an_unknown_kind_is_refused_in_words(tmp_path: Path, spoiled: str) -> None:
    cert, key = Authority().server().write(tmp_path, "server")
    file = tmp_path / spoiled
    file.write_bytes(of_an_unknown_kind(file.read_bytes()))
    refused = check(f"[tls]\ncert_file = '{cert}'\nkey_file = '{key}'\n", tmp_path)
    assert refused.exit_code == 2
    assert refused.stderr.endswith("tls: TLS: the certificate or the key is of a kind that is not supported\n")


def test_one_of_several_issuers_that_may_speak_for_all_tenants_is_warned_of(tmp_path: Path) -> None:
    theirs = ISSUER.replace("issuer.example", "globex.example")
    shown = check(f"{ISSUER}\n{theirs}\ntenants = ['globex']\n", tmp_path)
    assert "    speaks for globex" in topic(shown, "Callers")
    assert topic(shown, "Warnings") == [
        "[auth] issuers: https://issuer.example may speak for any tenant, also for those of other issuers",
        UNLIMITED,
    ]


def test_issuer_without_bounds_is_warned_of(tmp_path: Path) -> None:
    text = "[tiers.default.limits.tenant]\nrequests_per_minute = 60\n" + ISSUER.replace("max_lifetime = 3600", "")
    endless = "[auth] issuers: https://issuer.example has no max_lifetime: a token is good for as long as it says"
    assert topic(check(text, tmp_path), "Warnings") == [endless]
    assert topic(check(f"{text}\nmax_lifetime = 60\n", tmp_path), "Warnings") == ["none"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (KEY + "[server]\nlisten = '0.0.0.0:1'\n", "server.listen: refusing to listen on '0.0.0.0:1' without TLS"),
        ("[tls]\ncert_file = '/nowhere'\nkey_file = '/nowhere'\n", "tls: TLS: /nowhere: No such file"),
        ("[server]\nhealth_listen = 'nowhere'\n", "server.health_listen: Expected `str` matching"),
    ],
)
def test_server_that_could_not_start_is_found_out(tmp_path: Path, text: str, reason: str) -> None:
    refused = check(text, tmp_path)
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"error: {tmp_path}/famulus.toml: {reason}")


def test_plaintext_lets_a_server_listen_where_a_mesh_encrypts(tmp_path: Path) -> None:
    text = "[server]\nlisten = '0.0.0.0:1'\n[auth]\nplaintext = true\n" + KEY
    assert topic(check(text, tmp_path), "Warnings") == [UNLIMITED]
