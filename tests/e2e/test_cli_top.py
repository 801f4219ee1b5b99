"""`famulus-server top` on a terminal."""

import signal

import pytest

from command import SECONDS
from metered import Metered
from terminal import terminal


def test_q_quits_and_leaves_the_terminal_as_it_was() -> None:
    replica = Metered()
    replica.set("queue_runs", 4_321)
    with replica.served() as address, terminal("top", address, "--interval", "60") as shown:
        assert "4,321 runs wait" in shown.until(address)
        assert shown.mode() != shown.before
        shown.press("q")
        assert shown.process.wait(SECONDS) == 0
        assert shown.mode() == shown.before


def test_view_is_drawn_again_each_interval_and_in_the_size_that_the_terminal_has() -> None:
    replica = Metered()
    replica.set("queue_runs", 1)
    with replica.served() as address, terminal("top", address, "--interval", "0.1") as shown:
        shown.until("1 runs wait")
        replica.set("queue_runs", 2)
        shown.until("2 runs wait")
        shown.resize(rows=30, columns=40)
        shown.process.send_signal(signal.SIGWINCH)
        # Too narrow for the line: its end is on the next one.
        shown.until("oldest for\r\n")
        shown.press("q")
        assert shown.process.wait(SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_quits_as_well(number: signal.Signals) -> None:
    with Metered().served() as address, terminal("top", address, "--interval", "60") as shown:
        shown.until("q quits")
        shown.process.send_signal(number)
        assert shown.process.wait(SECONDS) == 0
        assert shown.mode() == shown.before
