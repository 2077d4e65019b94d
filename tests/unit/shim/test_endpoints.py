"""What the relay may dial: exactly what is named."""

import pytest
from sealrun_protocol import registries
from sealrun_runtime.shim.endpoints import (
    Endpoint,
    endpoint,
    of_image,
    of_registry,
    parse,
    registry_of,
)


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("registry.test/app:1", "registry.test"),
        ("registry.test:5000/a/b@sha256:" + 64 * "0", "registry.test:5000"),
        ("localhost/app", "localhost"),
        ("localhost:5000/app", "localhost:5000"),
        ("127.0.0.1:5055/app:1", "127.0.0.1:5055"),
        ("[::1]:5000/app", "[::1]:5000"),
        ("docker.io/library/alpine", "docker.io"),
        ("Registry.Test/app", "registry.test"),
        ("alpine", "docker.io"),
        ("library/alpine:3", "docker.io"),
        ("alpine:3.19", "docker.io"),
    ],
)
def test_registry_of_a_reference(image: str, registry: str) -> None:
    assert registry_of(image) == registry


def test_a_registry_is_one_endpoint() -> None:
    assert of_registry("registry.test") == {Endpoint("registry.test", 443)}
    assert of_registry("registry.test:5000") == {Endpoint("registry.test", 5000)}
    assert of_registry("[2001:db8::1]") == {Endpoint("2001:db8::1", 443)}
    assert of_registry("[2001:db8::1]:5000") == {Endpoint("2001:db8::1", 5000)}


def test_plain_http_has_its_port_only_where_it_is_allowed() -> None:
    assert of_registry("registry.test", ["other.test"]) == {Endpoint("registry.test", 443)}
    assert of_registry("registry.test", ["Registry.test"]) == {
        Endpoint("registry.test", 443),
        Endpoint("registry.test", 80),
    }
    assert of_registry("registry.test:5000", ["registry.test:5000"]) == {
        Endpoint("registry.test", 5000)
    }


def test_docker_hub_is_not_where_its_name_says() -> None:
    found = of_registry("index.docker.io")
    assert found == of_registry("docker.io")
    assert {Endpoint("registry-1.docker.io", 443), Endpoint("auth.docker.io", 443)} <= found
    assert all(one.port == 443 for one in found)


def test_endpoints_are_compared_as_they_are_named() -> None:
    assert endpoint("Registry.TEST", 5) == Endpoint("registry.test", 5)
    assert endpoint("localhost", 5) != endpoint("127.0.0.1", 5)
    assert str(Endpoint("::1", 5)) == "[::1]:5"
    assert str(Endpoint("a.test", 5)) == "a.test:5"


def test_reading_an_endpoint() -> None:
    assert parse("a.test:5000") == Endpoint("a.test", 5000)
    assert parse("[::1]:5000") == Endpoint("::1", 5000)
    assert parse("a.test", 443) == Endpoint("a.test", 443)


@pytest.mark.parametrize(
    "text",
    ["", "a.test", ":5", "a.test:", "a.test:x", "a.test:0", "a.test:65536", "a.test:-1", "[::1",
     "[::1]5", "[]:5", "a.test:٣", "a.test:5:6"],
)  # fmt: skip
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read the endpoint"):
        parse(text)


def test_mirrors_of_the_init_data_are_opened_and_what_is_blocked_is_not() -> None:
    mirrors = [{"location": "m.test:5000/a", "insecure": True}, {"location": "[::1]/a"}]
    read = registries.parse(
        {
            "registry": [
                {"prefix": "r.test/a", "location": "s.test", "mirror": mirrors},
                {"location": "blocked.test", "blocked": True},
            ]
        }
    )
    assert of_image(read, "r.test/a/b:1", ()) == {
        Endpoint("m.test", 5000), Endpoint("::1", 443), Endpoint("s.test", 443),
    }  # fmt: skip
    assert of_image(read, "blocked.test/a:1", ()) == frozenset()
    assert of_image(read, "other.test/a:1", ("other.test",)) == {
        Endpoint("other.test", 443), Endpoint("other.test", 80),
    }  # fmt: skip
