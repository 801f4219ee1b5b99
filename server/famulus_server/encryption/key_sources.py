"""The operator's key (KEK), from a file or from a command."""

import base64
import binascii
import os
import re
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from famulus_server.encryption.errors import KeyUnusable

KEY_BYTES = 32

_HEX = re.compile(r"[0-9a-fA-F]{64}")
_COMMAND_SECONDS = 30.0


def new_key() -> str:
    """A new key, as it stands in a file: base64."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def read_key(path: Path) -> bytes:
    """The key in a file. Raises KeyUnusable."""
    try:
        text = path.read_text("ascii")
    except OSError as error:
        raise KeyUnusable(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise KeyUnusable(_no_key(str(path))) from None
    return _parse(text, str(path))


def ask_for_key(command: Sequence[str]) -> bytes:
    """The key that a command prints, as that of a key management service does. Raises KeyUnusable."""
    # What it says on standard error is for the operator, and goes where ours goes.
    try:
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, timeout=_COMMAND_SECONDS)
    except OSError as error:
        raise KeyUnusable(f"{command[0]} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise KeyUnusable(f"{command[0]} took longer than {_COMMAND_SECONDS:g} s") from None
    if done.returncode:
        raise KeyUnusable(f"{command[0]} failed with the exit code {done.returncode}")
    return _parse(done.stdout.decode("ascii", "replace"), f"what {command[0]} printed")


def is_exposed(path: Path) -> bool:
    """Whether others than its owner may read the file."""
    try:
        return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False


def _parse(text: str, where: str) -> bytes:
    word = text.strip()
    if _HEX.fullmatch(word):
        return bytes.fromhex(word)
    try:
        key = base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        raise KeyUnusable(_no_key(where)) from None
    if len(key) != KEY_BYTES:
        raise KeyUnusable(_no_key(where))
    return key


def _no_key(where: str) -> str:
    return f"{where} is no key: {KEY_BYTES} bytes as base64 or hex are one; `famulus-server keys new` makes one"
