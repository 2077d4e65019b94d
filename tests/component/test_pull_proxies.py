"""Proxies: by whole addresses and by tunnels, with and without TLS of their own, and who may pass."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import layers
from fixtures import registry as registries
from fixtures.pulling import Puller
from fixtures.registry import Registry
from sealrun_agent.image.pull import ImagePolicy
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.proxies import Proxy
from simulators import proxy as proxies
from simulators.registry import Answer, Simulator

TAR = layers.tar([layers.file("file", bytes(3_000_000))])
URI = "kbs:///default/credential/test"
USER = "me:sec ret"
BASIC = f"Basic {base64.b64encode(USER.encode()).decode()}"


@pytest.fixture
def proxy() -> Iterator[proxies.Proxy]:
    """Wants USER."""
    with proxies.serve(USER) as running:
        yield running


@pytest.fixture(scope="module")
def sealed(
    tmp_path_factory: pytest.TempPathFactory, tls_registry: Registry
) -> tuple[str, ImagePolicy]:
    """An image behind TLS, and what trusts it."""
    layout = tmp_path_factory.mktemp("proxies") / "layout"
    layers.write_layout(layout, [TAR])
    registries.push(layout, tls_registry, "through/proxies:1")
    assert tls_registry.certificate is not None
    trusting = ImagePolicy(ca_certificates=tls_registry.certificate.authority)
    return f"{tls_registry.address}/through/proxies:1", trusting


def test_a_proxy_gets_the_whole_address(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    with proxies.serve() as proxy:
        way = Proxy(http_proxy=f"http://{proxy.address}", no_proxy="other.example")
        puller(reference, ImagePolicy((simulator.address,), proxy=way))
    assert [request.headers["host"] for request in simulator.requests] == [simulator.address] * 3
    assert [asked for asked, _ in proxy.asked] == [
        f"GET http://{simulator.address}{path}" for path in simulator.paths()
    ]


@pytest.mark.parametrize("where", ["127.0.0.1:{port}", "127.0.0.0/8", ".example, 127.0.0.1", "*"])
def test_what_is_reached_without_a_proxy(puller: Puller, simulator: Simulator, where: str) -> None:
    port = simulator.address.rpartition(":")[2]
    way = Proxy(http_proxy="http://127.0.0.1:1", no_proxy=where.format(port=port))
    puller(simulator.publish([TAR]), ImagePolicy((simulator.address,), proxy=way))


def test_another_port_of_the_same_host_is_reached_through_it(
    puller: Puller, simulator: Simulator
) -> None:
    way = Proxy(http_proxy="http://127.0.0.1:1", no_proxy="127.0.0.1:443")
    policy = ImagePolicy((simulator.address,), proxy=way)
    error = puller.refused(simulator.publish([TAR]), policy)
    assert error.code is ErrorCode.REGISTRY_UNREACHABLE
    assert f"cannot reach {simulator.address} through the proxy 127.0.0.1:1" in str(error)


def test_a_password_in_the_address(
    puller: Puller, simulator: Simulator, proxy: proxies.Proxy
) -> None:
    way = Proxy(http_proxy=f"http://me:sec%20ret@{proxy.address}")
    puller(simulator.publish([TAR]), ImagePolicy((simulator.address,), proxy=way))
    assert {sent for _, sent in proxy.asked} == {BASIC}
    assert not any("proxy-authorization" in request.headers for request in simulator.requests)


def test_a_password_of_the_broker(
    puller: Puller, simulator: Simulator, proxy: proxies.Proxy
) -> None:
    """It is asked for when the proxy wants it, and nobody else gets it."""
    entry = {"auth": base64.b64encode(USER.encode()).decode()}
    puller.resources = {URI: json.dumps({"auths": {proxy.address: entry}}).encode()}
    way = Proxy(http_proxy=f"http://{proxy.address}")
    policy = ImagePolicy((simulator.address,), proxy=way, credentials_uri=URI)
    puller(simulator.publish([TAR]), policy)
    assert [sent for _, sent in proxy.asked] == ["", *[BASIC] * 3]
    assert puller.resources_asked == [URI]
    assert not any("authorization" in request.headers for request in simulator.requests)


@pytest.mark.parametrize(("user", "how"), [("", "wants credentials"), ("me:pass@", "refuses the")])
@pytest.mark.parametrize("insecure", [("r.example",), ()])
def test_a_proxy_that_lets_nobody_through(
    puller: Puller, proxy: proxies.Proxy, user: str, how: str, insecure: tuple[str, ...]
) -> None:
    url = f"http://{user}{proxy.address}"
    policy = ImagePolicy(insecure, proxy=Proxy(http_proxy=url, https_proxy=url))
    error = puller.refused("r.example/a:1", policy)
    assert error.code is ErrorCode.REGISTRY_DENIED
    assert f"through the proxy {proxy.address}: it {how}" in str(error)
    assert "pass" not in f"{error} {policy}"
    assert len(proxy.asked) == 1


@pytest.mark.registry
@pytest.mark.parametrize("user", ["", "me:sec%20ret@"])
def test_tls_goes_through_a_tunnel(
    puller: Puller, proxy: proxies.Proxy, sealed: tuple[str, ImagePolicy], user: str
) -> None:
    reference, policy = sealed
    entry = {"auth": base64.b64encode(USER.encode()).decode()}
    puller.resources = {URI: json.dumps({"auths": {proxy.address: entry}}).encode()}
    way = Proxy(https_proxy=f"http://{user}{proxy.address}")
    puller(reference, policy._replace(proxy=way, credentials_uri=URI))
    assert {asked for asked, _ in proxy.asked} == {f"CONNECT {reference.partition('/')[0]}"}
    assert [sent for _, sent in proxy.asked].count("") == (0 if user else 1)


@pytest.mark.registry
def test_a_proxy_that_speaks_tls_itself(
    puller: Puller, simulator: Simulator, sealed: tuple[str, ImagePolicy], tmp_path: Path
) -> None:
    """With a CA of its own; for registries with and without TLS: for the former TLS is within TLS."""
    reference, policy = sealed
    certificate = registries.certificate(tmp_path / "tls", authority="proxy CA")
    with proxies.serve(certificate=certificate) as proxy:
        url = f"https://{proxy.address}"
        policy = policy._replace(
            proxy=Proxy(https_proxy=url, http_proxy=url),
            insecure_registries=(simulator.address,),
        )
        error = puller.refused(reference, policy)
        assert error.code is ErrorCode.REGISTRY_UNTRUSTED
        assert f"the certificate of the proxy {proxy.address} is not trusted" in str(error)
        both = policy.ca_certificates + certificate.authority
        image = puller(reference, policy._replace(ca_certificates=both))
        assert (Path(image.layers[0]) / "file").stat().st_size == 3_000_000
        puller(simulator.publish([TAR]), policy._replace(ca_certificates=both))
        error = Puller(tmp_path / "other").refused(
            reference, policy._replace(ca_certificates=certificate.authority)
        )
        assert error.code is ErrorCode.REGISTRY_UNTRUSTED
        assert f"the certificate of {reference.partition('/')[0]} is not trusted" in str(error)
    assert {asked.partition(" ")[0] for asked, _ in proxy.asked} == {"CONNECT", "GET"}


def test_a_proxy_that_breaks_off_in_the_middle(puller: Puller, simulator: Simulator) -> None:
    """What it sends instead of an answer to CONNECT is not obeyed."""
    for raw, code in (
        (b"", ErrorCode.REGISTRY_UNREACHABLE),
        (b"SSH-2.0-x\r\n", ErrorCode.REGISTRY_PROTOCOL),
        (b"HTTP/1.1 302 x\r\nLocation: http://r.example/\r\n\r\n", ErrorCode.REGISTRY_UNREACHABLE),
        (b"HTTP/1.1 200 x\r\n\r\nno TLS", ErrorCode.REGISTRY_UNTRUSTED),
    ):
        simulator.answers["[2001:db8::1]:8443"] = Answer(raw=raw)
        policy = ImagePolicy(proxy=Proxy(https_proxy=f"http://{simulator.address}"))
        error = puller.refused("[2001:db8::1]:8443/a:1", policy)
        assert error.code is code
        assert simulator.address in str(error) or code is not ErrorCode.REGISTRY_PROTOCOL
    assert {request.path for request in simulator.requests} == {"[2001:db8::1]:8443"}
