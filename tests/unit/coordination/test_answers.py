"""Answers of Redis, in whatever pieces they arrive."""

import asyncio

import pytest
from redis.exceptions import ResponseError

from famulus_server.coordination.answers import Answers

SENT = b"$11\r\n0 0 12\r\n345\r\n:-7\r\n_\r\n$0\r\n\r\n$-1\r\n-OOM command not allowed \xff\r\n:3\r\n"
READ = [b"0 0 12\r\n345", -7, None, b"", None, "OOM command not allowed \ufffd", 3]


class Stage:
    """Somebody who listens."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.lost: list[str] = []
        self.reader = asyncio.StreamReader()
        before = asyncio.StreamReaderProtocol(self.reader)
        self.answers = Answers(before=before, heard=self._hear, lost=self.lost.append)

    def _hear(self, answer: object) -> None:
        self.heard.append(str(answer) if isinstance(answer, ResponseError) else answer)


@pytest.mark.parametrize("size", range(1, len(SENT) + 1))
async def test_answers_are_read_in_whatever_pieces_they_come(size: int) -> None:
    stage = Stage()
    for start in range(0, len(SENT), size):
        stage.answers.data_received(SENT[start : start + size])
    assert stage.heard == READ
    assert stage.lost == []


@pytest.mark.parametrize(
    "foreign",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b">2\r\n$4\r\nMOVE\r\n",
        b"*1\r\n:1\r\n",
        b"\r\n",
        b":\r\n",
        b":one\r\n",
        b"$-2\r\n",
        b"$x\r\n",
        b"$1000000000\r\n",
        b":" + b"9" * 5_000 + b"\r\n",
        b"x" * 70_000,
    ],
)
async def test_what_no_script_answers_ends_the_connection(foreign: bytes) -> None:
    stage = Stage()
    stage.answers.data_received(b":1\r\n" + foreign)
    assert stage.heard == [1]
    assert stage.lost == ["unknown answer"]


async def test_who_read_before_is_told_of_the_end() -> None:
    stage = Stage()
    stage.answers.connection_lost(None)
    assert stage.lost == ["connection lost"]
    assert stage.reader.at_eof()
