import socket

import pytest

from famulus_server.api.addresses import ListenError, check_free, check_reachable, with_port


@pytest.mark.parametrize(
    "address", ["127.0.0.1:50051", "127.9.9.9:0", "localhost:1", "[::1]:65535", "unix:/run/famulus.sock"]
)
def test_loopback_is_allowed(address: str) -> None:
    check_reachable(address, authenticated=False, encrypted=False)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:50051",
        "[::]:50051",
        "10.0.0.1:1",
        "192.168.0.1:1",
        "example.com:1",
        "localhost.example.com:1",
        "127.0.0.1.example.com:1",
        "*:1",
    ],
)
def test_every_other_host_is_refused_and_the_text_says_what_to_do(address: str) -> None:
    with pytest.raises(ListenError, match=r"no authentication.*use 127\.0\.0\.1"):
        check_reachable(address, authenticated=False, encrypted=True)


def test_other_hosts_are_allowed_where_callers_are_known_and_their_tokens_encrypted() -> None:
    check_reachable("0.0.0.0:50051", authenticated=True, encrypted=True)
    with pytest.raises(ListenError, match=r"in the clear.*\[tls\].*plaintext = true"):
        check_reachable("0.0.0.0:50051", authenticated=True, encrypted=False)


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "::1:5", "dns:///127.0.0.1:5", "a:1,0.0.0.0:2"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ListenError, match="write host:port"):
        check_reachable(address, authenticated=True, encrypted=True)


def test_chosen_port_replaces_zero() -> None:
    assert with_port("[::1]:0", 5) == "[::1]:5"
    assert with_port("unix:/a", 1) == "unix:/a"


def test_address_in_use_is_found_before_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match="another server"):
            check_free(f"127.0.0.1:{port}")
    check_free(f"127.0.0.1:{port}")
