"""`[image.image_pull_proxy]` of the init-data: the way to registries. No I/O.

User and password may stand in a proxy's address, where the host can read them, or, better, in the
registries' credentials of the broker, under the proxy's host:port. They are in no text and no repr.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

import msgspec

from sealrun_protocol.urls import HOST, endpoint, has_port

_USERINFO: Final = r"[A-Za-z0-9._~!$&'()*+,;=%-]"  # RFC 3986, 3.2.1
_ADDRESS: Final = re.compile(
    rf"(?P<scheme>https?)://(?:(?P<user>{_USERINFO}{{1,255}})(?::(?P<password>{_USERINFO}{{0,255}}))?@)?{HOST}/?"
)
FORM: Final = "http[s]://[user:password@]host[:port]"


class ProxyAddress(NamedTuple):
    """host: without brackets. tls: the proxy itself speaks it. user: empty where none is written."""

    host: str
    port: int
    tls: bool
    user: str
    password: str

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def __repr__(self) -> str:
        return str(self)


class Proxy(msgspec.Struct, frozen=True, kw_only=True):
    """https_proxy, http_proxy: FORM, for registries that are spoken to with and without TLS; empty: none.
    no_proxy: what is reached without, separated by commas: a name stands for itself and all below it, an
    address for itself, a network (10.0.0.0/8) for its addresses, host:port for this port alone, `*` for
    everything."""

    https_proxy: str = ""
    http_proxy: str = ""
    no_proxy: str = ""

    def __repr__(self) -> str:
        return "Proxy(…)"

    def of(self, host: str, port: int, *, tls: bool) -> ProxyAddress | None:
        """The proxy for a registry (host without brackets)."""
        url = self.https_proxy if tls else self.http_proxy
        if not url or any(_covers(rule.strip(), host, port) for rule in self.no_proxy.split(",")):
            return None
        return _read(url)

    def addresses(self) -> tuple[ProxyAddress, ...]:
        """All that are named."""
        return tuple(_read(url) for url in (self.https_proxy, self.http_proxy) if url)


def is_address(url: str) -> bool:
    """Whether it is FORM."""
    found = _ADDRESS.fullmatch(url)
    return found is not None and (not found["port"] or has_port(found))


def _read(url: str) -> ProxyAddress:
    found = _ADDRESS.fullmatch(url)
    assert found is not None  # init-data was checked
    secret = unquote(found["user"] or ""), unquote(found["password"] or "")
    return ProxyAddress(*endpoint(found), found["scheme"] == "https", *secret)


def _covers(rule: str, host: str, port: int) -> bool:
    name, wanted = _split(rule.lower())
    if wanted and wanted != str(port):
        return False
    if "/" in name:
        return _within(host, name)
    bare, host = name.removeprefix("*.").removeprefix("."), host.lower()
    return name == "*" or (bool(bare) and (host == bare or host.endswith("." + bare)))


def _split(rule: str) -> tuple[str, str]:
    """Name, address or network without brackets, and port or an empty text."""
    if rule.startswith("["):
        name, _, rest = rule[1:].partition("]")
        return (name, rest[1:]) if rest.startswith(":") else (name + rest, "")
    if rule.count(":") == 1:
        name, _, port = rule.partition(":")
        return name, port
    return rule, ""  # an IPv6 address may stand without brackets


def _within(host: str, network: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False  # a name, or no network
