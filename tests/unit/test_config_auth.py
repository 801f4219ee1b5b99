"""Callers and TLS in the settings: what is read, and what is refused."""

from pathlib import Path

import pytest

from famulus_server.config import ConfigError, Settings, check, load
from famulus_server.identity.settings import AuthSettings, IssuerSettings

ISSUER = "[[auth.issuers]]\nissuer = 'i'\naudience = 'a'\n"
KEY = "[[auth.keys]]\nname = 'k'\ntenant = 't'\nroles = []\nsha256 = '{sha}'\n"
CERTIFICATE = "[[auth.certificates]]\nname = 'c'\ntenant = 't'\nroles = ['reader']\n"
TLS = "[tls]\ncert_file = 'c'\nkey_file = 'k'\nclient_ca_file = 'a'\n"


def read(text: str, folder: Path) -> Settings:
    file = folder / "famulus.toml"
    file.write_text(text)
    settings = load(file, {})
    check(settings, source=str(file))
    return settings


def refused(text: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read(text, folder)
    return str(error.value).removeprefix(f"{folder}/famulus.toml: ")


def test_without_a_file_nobody_is_asked_who_he_is() -> None:
    settings = load(None, {})
    assert (settings.auth, settings.auth.configured, settings.tls.cert_file) == (AuthSettings(), False, "")


@pytest.mark.parametrize(
    "url", ["https://issuer.example/keys", "http://127.0.0.1:8080/keys", "http://[::1]/keys", "http://localhost/k"]
)
def test_keys_come_encrypted_or_from_this_machine(url: str, tmp_path: Path) -> None:
    [issuer] = read(f"{ISSUER}jwks_url = '{url}'\n", tmp_path).auth.issuers
    assert issuer == IssuerSettings(issuer="i", audience="a", jwks_url=url)
    assert issuer.algorithms == ("RS256", "ES256", "EdDSA")


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example/keys",
        "http://127.0.0.1.example/keys",
        "http://127.0.0.1@issuer.example/keys",
        "ftp://127.0.0.1/keys",
        "file:///etc/keys",
        "https://",
        "https://[::1/keys",
        "keys",
    ],
)
def test_keys_that_somebody_else_could_send_are_refused(url: str, tmp_path: Path) -> None:
    assert refused(f"{ISSUER}jwks_url = '{url}'\n", tmp_path).startswith("auth.issuers[0].jwks_url: must be an https")


SHA = "0" * 64
WRONG = {
    ISSUER: "auth.issuers[0]: needs one of jwks_url and jwks_file",
    ISSUER + "jwks_file = 'f'\njwks_url = 'https://x'\n": "auth.issuers[0]: needs one of jwks_url and jwks_file",
    ISSUER + "jwks_file = 'f'\nalgorithms = ['HS256']\n": "auth.issuers[0].algorithms[0]: Invalid enum value 'HS256'",
    ISSUER + "jwks_file = 'f'\nalgorithms = ['none']\n": "auth.issuers[0].algorithms[0]: Invalid enum value 'none'",
    ISSUER + "jwks_file = 'f'\nalgorithms = []\n": "auth.issuers[0].algorithms: Expected `array` of length >= 1",
    (ISSUER + "jwks_file = 'f'\n") * 2: "auth.issuers: 'i' stands there twice",
    KEY.format(sha=SHA.replace("0", "A")): "auth.keys[0].sha256: Expected `str` matching",
    KEY.format(sha="fam_key"): "auth.keys[0].sha256: Expected `str` matching",
    KEY.format(sha=SHA) * 2: "auth.keys: 'k' stands there twice",
    KEY.format(sha=SHA) + KEY.format(sha=SHA).replace("'k'", "'l'"): f"auth.keys: '{SHA}' stands there twice",
    KEY.format(sha=SHA) + "key = 'fam_x'\n": "auth.keys[0]: Object contains unknown field `key`",
    KEY.format(sha=SHA).replace("'t'", "'*'"): "auth.keys[0].tenant: Expected `str` matching",
    KEY.format(sha=SHA).replace("'t'", "''"): "auth.keys[0].tenant: Expected `str` matching",
    KEY.format(sha=SHA).replace("'t'", '"t\\n"'): "auth.keys[0].tenant: Expected `str` matching",
    KEY.format(sha=SHA).replace("[]", "['admin']"): "auth.keys[0].roles[0]: Invalid enum value 'admin'",
    TLS + CERTIFICATE: "auth.certificates[0]: needs one of spiffe and dns",
    TLS + CERTIFICATE + "dns = 'd'\nspiffe = 'spiffe://d'\n": "auth.certificates[0]: needs one of spiffe and dns",
    TLS + CERTIFICATE + "dns = '*.d'\n": "auth.certificates[0].dns: Expected `str` matching",
    TLS + CERTIFICATE + "spiffe = 'spiffe://*'\n": "auth.certificates[0].spiffe: Expected `str` matching",
    TLS + CERTIFICATE + "spiffe = 'spiffe://d/*/x'\n": "auth.certificates[0].spiffe: Expected `str` matching",
    TLS + CERTIFICATE + "spiffe = 'spiffe://d/x*'\n": "auth.certificates[0].spiffe: Expected `str` matching",
    CERTIFICATE + "dns = 'd'\n": "auth.certificates: need [tls] client_ca_file",
    "[tls]\ncert_file = 'c'\n": "tls: cert_file and key_file go together",
    "[tls]\nkey_file = 'c'\n": "tls: cert_file and key_file go together",
    "[tls]\nclient_ca_file = 'c'\n": "tls.client_ca_file: needs cert_file and key_file",
}


@pytest.mark.parametrize(("text", "reason"), WRONG.items())
def test_settings_that_are_wrong_are_named(text: str, reason: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path).startswith(reason)
