"""Where the operator's key comes from, and what is said where it does not."""

import base64
import sys
from pathlib import Path

import pytest

from famulus_server.encryption.errors import KeyUnusable
from famulus_server.encryption.key_sources import ask_for_key, is_exposed, new_key, read_key

KEY = bytes(range(32))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "famulus.key"


def printing(text: str, *, code: int = 0) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.stdout.write({text!r}); sys.exit({code})"]


@pytest.mark.parametrize("text", [KEY.hex(), KEY.hex().upper() + "\n", base64.b64encode(KEY).decode(), f" {KEY.hex()}"])
def test_key_is_read_as_hex_or_base64_from_a_file_or_a_command(text: str, file: Path) -> None:
    file.write_text(text)
    assert read_key(file) == ask_for_key(printing(text)) == KEY


def test_new_key_is_a_key_and_never_the_same(file: Path) -> None:
    file.write_text(new_key())
    assert len(read_key(file)) == 32
    assert new_key() != new_key()


@pytest.mark.parametrize(
    "text", ["", "correct horse battery staple", KEY.hex()[:-2], base64.b64encode(KEY[1:]).decode()]
)
def test_what_is_no_key_is_refused_and_not_shown(text: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(KeyUnusable, match="is no key") as from_file:
        read_key(file)
    with pytest.raises(KeyUnusable, match="is no key") as from_command:
        ask_for_key(printing(text))
    assert not text or text not in f"{from_file.value} {from_command.value}"


def test_file_and_command_that_cannot_be_used_are_named(file: Path) -> None:
    with pytest.raises(KeyUnusable, match=r"famulus.key cannot be read: No such file"):
        read_key(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(KeyUnusable, match=r"famulus.key is no key"):
        read_key(file)
    with pytest.raises(KeyUnusable, match="no-such-program cannot be run"):
        ask_for_key(["no-such-program"])
    with pytest.raises(KeyUnusable, match="failed with the exit code 3"):
        ask_for_key(printing(KEY.hex(), code=3))


@pytest.mark.parametrize(("mode", "exposed"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_file_that_others_may_read_is_told(mode: int, exposed: bool, file: Path) -> None:
    file.touch()
    file.chmod(mode)
    assert is_exposed(file) is exposed
