"""The documentation of the scripted upstream says what the code does."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from famulus_server.embedded.upstream import Match, Scene, Script, parse_script
from famulus_server.embedded.upstream.script import FaultKind, Quirk

PAGE = (Path(__file__).parents[3] / "docs" / "scripted-upstream.md").read_text(encoding="utf-8")
ROWS = {key for row in re.findall(r"^\| ([^|]*) \|", PAGE, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_example_is_a_script(example: str) -> None:
    assert parse_script(example, source="the page").scenes


def test_every_key_kind_and_quirk_is_explained() -> None:
    keys = {field.encode_name for kind in (Script, Scene, Match) for field in msgspec.structs.fields(kind)}
    words = keys | set(get_args(FaultKind)) | set(get_args(Quirk))
    assert words - ROWS <= {"match", "times"}
    assert "`match` holds conditions" in PAGE
    assert "`times` is the number" in PAGE
