"""`serve` with traces: what it prints of them, how its log names them, and what it refuses."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from command import Running, run, server_environment
from e2e.test_cli_serve import start_run
from famulus import FamulusSyncClient
from famulus.v1.run_service_pb2 import GetRunRequest

# The names of a call, of a run, and of a trace.
OF_CALL = {"method", "request_id"}
OF_RUN = {"run_id", "thread_id"}
OF_TRACE = {"trace_id", "span_id"}


def spans_in(text: str) -> list[dict[str, Any]]:
    """The spans that the console exporter printed."""
    found, decoder = [], json.JSONDecoder()
    while (start := text.find("{")) >= 0:
        span, end = decoder.raw_decode(text[start:])
        found.append(span)
        text = text[start + end :]
    return found


def logged(server: Running) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.stderr if line.startswith("{")]


@pytest.mark.parametrize("traced", [True, False])
def test_lines_of_calls_and_runs_name_them_and_their_spans(tmp_path: Path, traced: bool) -> None:
    env = server_environment(tmp_path) | {"OTEL_TRACES_EXPORTER": "console" if traced else "none"}
    with Running("serve", env=env) as server, FamulusSyncClient(server.address()) as client:
        result = client.run_to_end(start_run(client))
        client.runs.GetRun(GetRunRequest(run_id=result.run.id))
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    lines, of_trace = logged(server), OF_TRACE if traced else set()
    [released] = [line for line in lines if line["event"] == "run released"]
    assert released.keys() >= {"request_id", "attempt"} | OF_RUN | of_trace
    # It was started by a call, and is none.
    assert "method" not in released
    calls = {line["method"].rpartition("/")[2]: line for line in lines if line["event"] == "call"}
    assert calls["CreateRun"].keys() >= OF_RUN
    for name in ("CreateRun", "WaitRun", "GetRun"):
        assert calls[name].keys() >= OF_CALL | of_trace
        assert calls[name]["run_id"] == result.run.id
    assert released["request_id"] == calls["CreateRun"]["request_id"]
    spans = {span["name"]: span for span in spans_in("\n".join(server.stdout))}
    if not traced:
        assert spans == {}
        assert not any(line.keys() & OF_TRACE for line in lines)
        return
    for line, name in ((calls["GetRun"], "famulus.v1.RunService/GetRun"), (released, "invoke_agent")):
        context = spans[name]["context"]
        assert (f"0x{line['trace_id']}", f"0x{line['span_id']}") == (context["trace_id"], context["span_id"])
    assert released["trace_id"] == calls["CreateRun"]["trace_id"]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "'grpc' is not supported"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "'http/json' is not supported"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "'zipkin' is none of otlp, console, none"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000", "OTEL_BSP_*: "),
    ],
)
def test_variables_that_cannot_be_followed_stop_the_start(tmp_path: Path, name: str, value: str, told: str) -> None:
    env = server_environment(tmp_path) | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", name: value}
    # How spans are gathered is not looked at before they are.
    for command in [("serve",), *([] if "_BSP_" in name else [("config", "check")])]:
        ended = run(*command, env=env)
        assert ended.returncode == 2
        assert ended.stderr.splitlines()[-1].startswith("error: environment: OTEL_")
        assert told in ended.stderr
        assert "Traceback" not in ended.stderr
