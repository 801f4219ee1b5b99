import base64

import pytest

from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.message_pb2 import Message
from famulus.v1.run_service_pb2 import ListRunsRequest
from famulus.v1.thread_service_pb2 import ListThreadsRequest
from famulus_server.api.pages import Pages, fitting
from famulus_server.errors import InvalidArgument
from famulus_server.ports import Cursor

PAGES = Pages(key=b"k" * 32)
REQUEST = ListThreadsRequest(page_size=2, user_id="u", metadata={"a": "1", "b": "2"})


def numbered(*numbers: int) -> list[Message]:
    return [Message(sequence=number) for number in numbers]


def number(item: Message) -> Cursor:
    return Cursor(item.sequence, f"id{item.sequence}")


def second_page() -> str:
    _, token = PAGES.of("t", REQUEST).close(numbered(1, 2, 3), number)
    return token


def is_refused(tenant: str, request: ListThreadsRequest | ListRunsRequest) -> bool:
    try:
        PAGES.of(tenant, request)
    except InvalidArgument as error:
        return error.reason == reasons.ERROR_REASON_INVALID_PAGE_TOKEN
    return False


def test_token_continues_behind_the_last_item_shown() -> None:
    request = ListThreadsRequest(page_token=second_page(), user_id="u", metadata={"b": "2", "a": "1"})
    assert PAGES.of("t", request).after == Cursor(2, "id2")


def test_last_page_has_no_token() -> None:
    shown, token = PAGES.of("t", REQUEST).close(numbered(1, 2), number)
    assert (shown, token) == (numbered(1, 2), "")


def test_page_ends_where_its_items_grow_too_large() -> None:
    large = [Message(sequence=sequence, id="x" * 900_000) for sequence in range(1, 6)]
    request = ListThreadsRequest(page_size=4)
    shown, token = PAGES.of("t", request).close(large, number)
    assert shown == large[:2]
    assert PAGES.of("t", ListThreadsRequest(page_token=token)).after == number(large[1])
    assert PAGES.of("t", request).close(large[2:4], number) == (large[2:4], "")


@pytest.mark.parametrize(("max_bytes", "fit"), [(0, 1), (11, 1), (12, 2), (18, 2), (19, 4)])
def test_first_items_fit_but_one_is_always_shown(max_bytes: int, fit: int) -> None:
    items = [Message(id="id_1"), Message(id="id_2"), Message(id="id_34"), Message()]
    assert [item.ByteSize() for item in items] == [6, 6, 7, 0]
    assert len(fitting(items, max_bytes)) == fit
    assert fitting([], max_bytes) == []


@pytest.mark.parametrize(("asked", "size"), [(0, 20), (1, 1), (100, 100), (101, 100), (2**31 - 1, 100)])
def test_page_size_has_a_default_and_a_maximum(asked: int, size: int) -> None:
    page = PAGES.of("t", ListThreadsRequest(page_size=asked))
    assert (page.size, page.limit) == (size, size + 1)


@pytest.mark.parametrize(("asked", "size"), [(0, 7), (8, 8), (9, 9), (10, 9)])
def test_default_and_maximum_are_those_of_the_method(asked: int, size: int) -> None:
    assert PAGES.of("t", ListThreadsRequest(page_size=asked), default_size=7, max_size=9).size == size


def test_page_size_may_change_between_pages() -> None:
    request = ListThreadsRequest(page_size=50, page_token=second_page(), user_id="u", metadata=REQUEST.metadata)
    assert not is_refused("t", request)


def test_token_of_another_tenant_filter_method_or_key_is_refused() -> None:
    token = second_page()
    same = ListThreadsRequest(page_token=token, user_id="u", metadata=REQUEST.metadata)
    assert not is_refused("t", same)
    assert is_refused("t2", same)
    assert is_refused("t", ListThreadsRequest(page_token=token, user_id="u2", metadata=REQUEST.metadata))
    assert is_refused("t", ListThreadsRequest(page_token=token, user_id="u", metadata={"a": "1"}))
    assert is_refused("t", ListRunsRequest(page_token=token))
    with pytest.raises(InvalidArgument):
        Pages(key=b"x" * 32).of("t", same)


def test_token_with_any_bit_flipped_is_refused() -> None:
    token = second_page()
    for index in range(len(token)):
        for bit in range(7):
            flipped = token[:index] + chr(ord(token[index]) ^ 1 << bit) + token[index + 1 :]
            assert is_refused("t", ListThreadsRequest(page_token=flipped, user_id="u", metadata=REQUEST.metadata))


@pytest.mark.parametrize("token", ["x", "A" * 22, "=", "ä", "A B", base64.b64encode(b"\0" * 40).decode(), "A" * 512])
def test_invented_token_is_refused(token: str) -> None:
    assert is_refused("t", ListThreadsRequest(page_token=token, user_id="u", metadata=REQUEST.metadata))
