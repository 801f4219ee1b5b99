import pytest

from famulus_server.api.validation import images


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/cat.png",
        "https://cdn.example.co.uk:8443/a/b.jpg?size=2#top",
        "https://xn--bcher-kva.example/x",
        "https://93.184.216.34/cat.png",
        "https://[2606:2800:220:1:248:1893:25c8:1946]/cat.png",
        "data:image/png;base64,iVBORw0KGgo=",
        "data:image/svg+xml;base64,AAAA",
    ],
)
def test_public_or_inline_image_is_accepted(url: str) -> None:
    assert images.problem(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cat.png",
        "http://example.com/cat.png",
        "ftp://example.com/cat.png",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://",
        "https:///cat.png",
        "https://localhost/x",
        "https://LOCALHOST./x",
        "https://a.localhost/x",
        "https://metadata.google.internal/x",
        "https://printer.local/x",
        "https://intranet/x",
        "https://127.0.0.1/x",
        "https://127.1/x",
        "https://2130706433/x",
        "https://0x7f.0.0.1/x",
        "https://0177.0.0.01/x",
        "https://10.0.0.1/x",
        "https://172.16.5.5/x",
        "https://192.168.1.1/x",
        "https://169.254.169.254/latest/meta-data/",
        "https://100.64.0.1/x",
        "https://0.0.0.0/x",
        "https://224.0.0.1/x",
        "https://[::1]/x",
        "https://[fe80::1]/x",
        "https://[fd00::1]/x",
        "https://[::ffff:169.254.169.254]/x",
        "https://[64:ff9b::a9fe:a9fe]/x",
        "https://[64:ff9b:1::a9fe:a9fe]/x",
        "https://[2002:7f00:1::]/x",
        "https://[2001:0:a9fe:a9fe::1]/x",
        "https://[::169.254.169.254]/x",
        "https://[::ffff:0:127.0.0.1]/x",
        "https://[fec0::1]/x",
        "https://[ff02::1]/x",
        "https://[fe80::1%25eth0]/x",
        "https://127.0.0.1./x",
        "https://0x7f000001/x",
        "https://017700000001/x",
        "https://169.254.43518/x",
        "https://192.0.0.192/x",
        "https://192.88.99.1/x",
        "https://user:secret@example.com/x",
        "https://example.com@127.0.0.1/x",
        "https://example.com:99999/x",
        "https://exa mple.com/x",
        "https://example.com\\@127.0.0.1/x",
        "https://exampl\u0435.com/x",
        "https://\uff11\uff12\uff17.0.0.1/x",
        "https://example.com/\r\nHost: evil",
        "https://example.com/" + "x" * 2_048,
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "data:image/png;base64,",
        "data:image/png;base64,!!!",
    ],
)
def test_url_that_could_point_inside_or_nowhere_is_refused(url: str) -> None:
    assert images.problem(url) is not None
