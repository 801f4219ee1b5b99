"""Where the keys of issuers come from: real files, a real web server."""

import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from credentials import Signer, jwks
from dead_proxy import dead_proxy
from famulus_server.identity.key_sets import KeyFile, KeySetUnusable, KeySource, KeyUrl, read_keys
from unit.identity.key_server import KeyServer

ONE, TWO, THREE = Signer.new("one"), Signer.new("two"), Signer.new("three")


def known(source: KeySource) -> set[str] | None:
    keys = source.current()
    return None if keys is None else set(keys)


class Watch:
    """A stopwatch that stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    async with KeyServer().serving() as server:
        server.body = jwks(ONE)
        yield server


@pytest.fixture
async def keys(server: KeyServer, watch: Watch) -> AsyncIterator[KeyUrl]:
    keys = KeyUrl(server.url, stopwatch=watch)
    keys.open()
    await keys.refresh()
    yield keys
    await keys.close()


async def test_keys_come_with_the_first_fetch(keys: KeyUrl, server: KeyServer) -> None:
    assert (known(keys), server.asked) == ({"one"}, 1)


async def test_unknown_key_is_asked_for_at_most_once_in_half_a_minute(
    keys: KeyUrl, server: KeyServer, watch: Watch
) -> None:
    server.body = jwks(ONE, TWO)
    await keys.refresh()
    assert known(keys) == {"one", "two"}
    server.body = jwks(TWO, THREE)
    for _ in range(100):
        await keys.refresh()
    assert (known(keys), server.asked) == ({"one", "two"}, 2)
    watch.now += 30
    await keys.refresh()
    assert (known(keys), server.asked) == ({"two", "three"}, 3)


BAD_ANSWERS: Mapping[str, dict[str, Any]] = {
    "an error": {"status": 500},
    "a redirect": {"status": 302, "headers": {"location": "/elsewhere"}},
    "no JSON": {"body": b"<html>"},
    "no object": {"body": b"[]"},
    "no keys": {"body": b"{}"},
    "keys that are no list": {"body": b'{"keys": {}}'},
    "an empty list": {"body": b'{"keys": []}'},
    "deep": {"body": b'{"keys":' + b"[" * 100_000},
    "too large": {"body": jwks(TWO) + b" " * 1024 * 1024},
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_answer_that_is_no_key_set_keeps_the_old_keys(
    keys: KeyUrl, server: KeyServer, answer: dict[str, Any]
) -> None:
    server.body = jwks(TWO)
    for name, value in answer.items():
        setattr(server, name, value)
    await keys.refresh()
    assert (known(keys), server.asked) == ({"one"}, 2)


async def test_server_that_is_gone_keeps_the_old_keys(watch: Watch) -> None:
    async with KeyServer().serving() as server:
        server.body = jwks(ONE)
        keys = KeyUrl(server.url, stopwatch=watch)
        keys.open()
        await keys.refresh()
    await keys.refresh()
    assert known(keys) == {"one"}
    await keys.close()


async def test_without_any_answer_there_are_no_keys_and_then_there_are(server: KeyServer, watch: Watch) -> None:
    server.status = 503
    keys = KeyUrl(server.url, stopwatch=watch)
    keys.open()
    await keys.refresh()
    assert known(keys) is None
    server.status = 200
    await keys.refresh()
    assert known(keys) == {"one"}
    await keys.close()


async def test_same_answer_is_the_same_mapping_so_that_what_was_verified_stays(keys: KeyUrl, server: KeyServer) -> None:
    before = keys.current()
    await keys.refresh()
    assert (keys.current() is before, server.asked) == (True, 2)


async def test_proxy_of_the_environment_is_not_asked_for_this_machine(
    server: KeyServer, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dead_proxy() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        keys = KeyUrl(server.url, stopwatch=watch)
        keys.open()
        await keys.refresh()
    assert known(keys) == {"one"}
    await keys.close()


async def test_file_is_read_again_when_it_changes(tmp_path: Path, watch: Watch) -> None:
    path = tmp_path / "keys.json"
    keys = KeyFile(path, stopwatch=watch)
    keys.open()
    assert known(keys) is None
    for content, expected in ((jwks(ONE), {"one"}), (jwks(TWO, ONE), {"one", "two"}), (b"nonsense", {"one", "two"})):
        replace(path, content)
        watch.now += 1
        assert known(keys) == expected
    path.unlink()
    watch.now += 1
    assert known(keys) == {"one", "two"}


async def test_file_that_becomes_readable_is_read_although_its_content_is_as_old_as_before(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    replace(path, jwks(ONE))
    keys = KeyFile(path, stopwatch=watch)
    with monkeypatch.context() as forbidden:
        # Not by its permissions: root may read whatever they say.
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        forbidden.setattr(Path, "open", refuse)
        keys.open()
        assert known(keys) is None
    path.chmod(0o644)
    path.chmod(0o600)
    watch.now += 1
    assert known(keys) == {"one"}


async def test_file_is_looked_at_once_a_second(tmp_path: Path, watch: Watch) -> None:
    path = tmp_path / "keys.json"
    replace(path, jwks(ONE))
    keys = KeyFile(path, stopwatch=watch)
    keys.open()
    replace(path, jwks(TWO))
    watch.now += 0.9
    assert known(keys) == {"one"}
    watch.now += 0.1
    assert known(keys) == {"two"}


def replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    os.replace(fresh, path)  # noqa: PTH105


def weak() -> dict[str, Any]:
    return Signer("weak", rsa.generate_private_key(public_exponent=65537, key_size=1024), "RS256").jwk


UNUSABLE: Mapping[str, Any] = {
    "no object": "key",
    "without a kid": {**ONE.jwk, "kid": None},
    "for encryption": {**ONE.jwk, "use": "enc"},
    "a secret": {"kty": "oct", "kid": "secret", "k": "c2VjcmV0"},
    "a private key": {**ONE.jwk, "d": "AAAA"},
    "another curve": {**ONE.jwk, "crv": "P-384"},
    "a curve that is none": {**ONE.jwk, "crv": ["P-256"]},
    "an algorithm of other keys": {**ONE.jwk, "alg": "RS256"},
    "a shared algorithm": {**ONE.jwk, "alg": "HS256"},
    "no point of the curve": {**ONE.jwk, "x": ONE.jwk["y"]},
    "no base64": {**ONE.jwk, "x": "!"},
    "half of it": {key: value for key, value in ONE.jwk.items() if key != "y"},
    "short RSA": weak(),
}


@pytest.mark.parametrize("entry", UNUSABLE.values(), ids=UNUSABLE)
def test_key_that_cannot_be_used_is_left_out(entry: Any) -> None:
    assert set(read_keys(json.dumps({"keys": [entry, TWO.jwk]}).encode())) == {"two"}
    with pytest.raises(KeySetUnusable):
        read_keys(json.dumps({"keys": [entry]}).encode())


def test_algorithm_is_that_of_the_key() -> None:
    signers = [Signer.new(algorithm, algorithm) for algorithm in ("RS256", "ES256", "EdDSA")]
    assert {kid: key.algorithm_name for kid, key in read_keys(jwks(*signers)).items()} == {
        "RS256": "RS256",
        "ES256": "ES256",
        "EdDSA": "EdDSA",
    }
