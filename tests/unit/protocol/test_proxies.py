"""Proxies of the init-data: which one for whom, and what no text says of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_protocol.proxies import Proxy, ProxyAddress, is_address


def of(no_proxy: str, host: str, port: int = 443) -> bool:
    """Whether a registry is reached through the proxy."""
    proxy = Proxy(https_proxy="http://p.example:3128", no_proxy=no_proxy)
    return proxy.of(host, port, tls=True) is not None


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "through"),
    [
        ("", "r.example", 443, True),
        ("r.example", "r.example", 443, False),
        ("r.example", "a.r.example", 443, False),
        ("r.example", "ar.example", 443, True),
        (".r.example", "a.r.example", 443, False),
        ("*.r.example", "a.r.example", 443, False),
        ("R.Example", "r.example", 443, False),
        ("r.example:5000", "r.example", 5000, False),
        ("r.example:5000", "r.example", 443, True),
        ("*:5000", "anything", 5000, False),
        ("*", "anything", 1, False),
        ("10.0.0.1", "10.0.0.1", 443, False),
        ("10.0.0.0/8", "10.9.8.7", 443, False),
        ("10.0.0.0/8", "11.0.0.1", 443, True),
        ("10.0.0.0/8", "r.example", 443, True),
        ("10.0.0.0/8x", "10.9.8.7", 443, True),
        ("fd00::/8", "fd00::1", 443, False),
        ("fd00::1", "fd00::1", 443, False),
        ("[fd00::1]", "fd00::1", 443, False),
        ("[fd00::1]:5000", "fd00::1", 5000, False),
        ("[fd00::1]:5000", "fd00::1", 443, True),
        ("a.example,, b.example ", "b.example", 443, False),
        (",", "r.example", 443, True),
    ],
)
def test_who_is_reached_without(no_proxy: str, host: str, port: int, through: bool) -> None:
    assert of(no_proxy, host, port) is through


@given(st.text(max_size=40), st.sampled_from(["r.example", "10.0.0.1", "fd00::1"]))
def test_any_list_is_read(no_proxy: str, host: str) -> None:
    assert of(no_proxy, host) in (True, False)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://p.example", ("p.example", 80, False, "", "")),
        ("http://p.example:3128/", ("p.example", 3128, False, "", "")),
        ("https://p.example", ("p.example", 443, True, "", "")),
        ("https://[fd00::1]:3128", ("fd00::1", 3128, True, "", "")),
        ("http://me@p.example:1", ("p.example", 1, False, "me", "")),
        ("http://me:s%3Ac%40%20ret@p.example", ("p.example", 80, False, "me", "s:c@ ret")),
    ],
)
def test_addresses(url: str, expected: tuple[object, ...]) -> None:
    assert is_address(url)
    (address,) = Proxy(http_proxy=url).addresses()
    assert address == expected
    assert Proxy(http_proxy=url).of("r.example", 80, tls=True) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "p.example:3128",
        "socks5://p.example",
        "http://p.example:0",
        "http://p.example:65536",
        "http://p.example/path",
        "http://a b:c@p.example",
        "http://:c@p.example",
        "http://a:b:c@p.example",
        "http://a:b@c@p.example",
        "http://a:\r\n@p.example",
    ],
)
def test_what_is_no_address(url: str) -> None:
    assert not is_address(url)


def test_no_text_has_the_password() -> None:
    proxy = Proxy(https_proxy="http://me:secret@p.example")
    (address,) = proxy.addresses()
    assert address == ProxyAddress("p.example", 80, False, "me", "secret")
    for text in (f"{proxy}", f"{proxy!r}", f"{address}", f"{address!r}", f"{[address]}"):
        assert "secret" not in text
