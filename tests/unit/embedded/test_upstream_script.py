"""The script format: what is accepted, and how mistakes are reported."""

from pathlib import Path

import pytest

from famulus_server.embedded.upstream import ScriptError, default_script, load_script, parse_script


def test_toml_and_json_describe_the_same_script(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        """
        models = ["m1"]
        [[scene]]
        match = { model = "m1", tool_outputs = false }
        times = 2
        fault = { kind = "status", status = 429, headers = { retry-after = "1" } }
        [[scene]]
        text = ["one", " two"]
        tool_calls = [{ name = "f", arguments = { city = "Rome" } }]
        """
    )
    (tmp_path / "a.json").write_text(
        """
        {"models": ["m1"], "scene": [
          {"match": {"model": "m1", "tool_outputs": false}, "times": 2,
           "fault": {"kind": "status", "status": 429, "headers": {"retry-after": "1"}}},
          {"text": ["one", " two"], "tool_calls": [{"name": "f", "arguments": {"city": "Rome"}}]}]}
        """
    )
    script = load_script(tmp_path / "a.toml")
    assert script == load_script(tmp_path / "a.json")
    assert script.scenes[1].text == ("one", " two")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[scene]]\ntextt = 'x'", "unknown field `textt` - at `$.scene[0]`"),
        ("[[scene]]\n[[scene]]\npace_ms = -1", "at `$.scene[1].pace_ms`"),
        ("[[scene]]\nfault = { kind = 'explode' }", "at `$.scene[0].fault.kind`"),
        ("[[scene]]\nfault = { kind = 'status' }", "the fault `status` needs the key `status` - at `$.scene[0].fault`"),
        ("[[scene]]\nfault = { kind = 'eof', size = 3 }", "`size` has no meaning for the fault `eof`"),
        ("[[scene]]\nfault = { kind = 'no_done', after = 3 }", "`after` has no meaning for the fault `no_done`"),
        ("[[scene]]\ntext = 'a'\ndeltas = 3", "`text` and `deltas` exclude each other"),
        (
            "[[scene]]\nheaders = { a = 'b' }\nfault = { kind = 'status', status = 500 }",
            "a fault instead of one has its own",
        ),
        (
            "[[scene]]\nmatch = { api = 'input_tokens' }\nfault = { kind = 'eof' }",
            "the fault `eof` has no meaning for the count of input tokens",
        ),
        ("[[scene]]\ntool_calls = [{ arguments = '{}' }]", "missing required field `name`"),
        ("scene = ", "Invalid value"),
    ],
)
def test_mistake_is_reported_with_file_and_key(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ScriptError) as caught:
        load_script(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value)


def test_missing_file_is_a_script_error(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"none\.toml: No such file"):
        load_script(tmp_path / "none.toml")


def test_bad_json_is_a_script_error() -> None:
    with pytest.raises(ScriptError, match="here: "):
        parse_script(b'{"scene": [', source="here", syntax="json")


def test_default_script_loads() -> None:
    assert [scene.name for scene in default_script().scenes] == ["tool outputs", "tool calls", "echo"]
