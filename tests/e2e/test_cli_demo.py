"""`demo`: what `make demo` and `make run` show."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from command import Running, environment, run, server_environment

STATES = ["IN_PROGRESS", "COMPLETED", "REQUIRES_ACTION"]


@pytest.mark.parametrize("model", ["smollm2-135m-instruct", "scripted"])
def test_demo_shows_three_runs_and_its_last_line_is_json(model: str, request: pytest.FixtureRequest) -> None:
    local = model != "scripted"
    if local:
        request.getfixturevalue("weights")
    shown = run("demo", env=environment({"FAMULUS_EMBEDDED_LOCAL_MODEL": "on" if local else "off"}))
    assert shown.returncode == 0, shown.stderr
    *lines, last = shown.stdout.splitlines()
    found = json.loads(last)
    assert (found["ok"], found["problems"], found["model"]) == (True, [], model)
    assert (found["runs"], found["tool_calls"], found["resumed"]) == (3, 2, True)
    assert [state for state in found["states"] if state in STATES] == STATES
    assert 0 < found["ttfe_ms"] <= found["first_text_ms"]
    assert 0 < found["cut_after"] < found["events"]
    assert found["prompt_tokens"] > 0
    assert found["completion_tokens"] > 0
    assert ("The answers come from a script" in shown.stdout) != local
    assert sum(line.endswith("run completed") for line in lines) == 3
    assert "the connection broke" in shown.stdout


def test_demo_that_keeps_serving_shows_a_run_and_how_to_call_next(tmp_path: Path) -> None:
    with Running("demo", "--keep-serving", env=server_environment(tmp_path)) as demo:
        demo.line("Ctrl-C")
        assert demo.line("run completed")
        curl = subprocess.run(["/bin/sh", "-c", demo.line("buf curl")], check=True, capture_output=True, text=True)
        assert "RUN_STATE_COMPLETED" in curl.stdout
        thread = re.findall(r"thread_\w+", demo.line("thread    "))[0]
        chatted = run("chat", "--address", demo.address(), "--thread", thread, "-m", "Hello")
        assert chatted.stdout == "You said: Hello\n"
        demo.signal(signal.SIGINT)
        assert demo.wait() == 0
