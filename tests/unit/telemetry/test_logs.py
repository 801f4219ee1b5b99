import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider

from famulus_server.ports import SpanKind
from famulus_server.telemetry.logs import configure_logs
from famulus_server.telemetry.spans import OtelTracer


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers, logging.root.level = handlers, level


def logged(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_both_kinds_of_loggers_write_json_lines() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream)
    with structlog.contextvars.bound_contextvars(request_id="r"):
        structlog.get_logger("ours").info("call", code="OK")
    logging.getLogger("theirs").warning("odd: %s", "line\nbreak")
    ours, theirs = logged(stream)
    assert (ours["event"], ours["code"], ours["level"], ours["request_id"]) == ("call", "OK", "info", "r")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("odd: line\nbreak", "warning", "theirs")
    assert "timestamp" in ours


def test_traceback_stays_on_its_line() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream)
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        structlog.get_logger().exception("call failed")
    (line,) = logged(stream)
    assert "ZeroDivisionError" in str(line["exception"])


def test_what_people_say_is_struck_out() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream)
    structlog.get_logger().info("oops", content="secret", instructions="secret", output="secret", run_id="run_1")
    assert "secret" not in stream.getvalue()
    assert logged(stream)[0]["run_id"] == "run_1"


def fail(password: str) -> None:
    raise ConnectionError(f"cannot connect to redis://:{password}@cache:6379/0")


@pytest.mark.parametrize("json_lines", [True, False])
def test_secrets_are_struck_out_of_both_kinds_of_loggers_and_of_tracebacks(json_lines: bool) -> None:
    stream = io.StringIO()
    # Not written as such: a traceback shows lines of the source.
    secret, known = "s3" + "cr3t", "open" + " sesame"
    configure_logs(stream=stream, json=json_lines, secrets=[known])
    ours, theirs = structlog.get_logger(), logging.getLogger("theirs")
    try:
        fail(secret)
    except ConnectionError:
        ours.exception("failed", header=f"Bearer {secret}-token", found={"api_key": secret})
        theirs.exception("failed at %s with %s", f"postgresql://me:{secret}@db/x", {"password": secret})
    ours.info(known, token=secret)
    theirs.warning("said %s", known, stack_info=True)
    text = stream.getvalue()
    assert text.count("ConnectionError: cannot connect to redis://:[redacted]@cache:6379/0") == 2
    assert "postgresql://me:[redacted]@db/x" in text
    assert "said [redacted]" in text
    assert secret not in text
    assert known not in text


def test_level_holds_and_must_exist() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream, level="warning")
    structlog.get_logger().info("quiet")
    assert stream.getvalue() == ""
    with pytest.raises(ValueError, match="no log level"):
        configure_logs(level="loud")


def test_terminal_gets_text() -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    configure_logs(stream=stream)
    structlog.get_logger().info("hello", code="OK")
    assert "hello" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_bad_trace_headers_of_callers_are_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    # Put back at the end.
    monkeypatch.setattr(logging.getLogger("opentelemetry.trace"), "level", logging.NOTSET)
    stream = io.StringIO()
    configure_logs(stream=stream)
    tracer = OtelTracer(TracerProvider().get_tracer("test"))
    good = f"00-{'a' * 32}-{'b' * 16}-01"
    for parent, state in ((good, "my secret, my secret"), (good, "a=1,a=1"), (good, "x" * 4_000), ("x" * 4_000, "")):
        tracer.start("call", SpanKind.SERVER, {}, parent=parent, state=state).end()
    assert stream.getvalue() == ""
