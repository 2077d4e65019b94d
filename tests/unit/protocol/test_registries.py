"""registries.conf: which places a reference leads to."""

import tomllib

import pytest
from fixtures.hostile import a_value, bounded, changed
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.image.reference import parse as parse_reference
from sealrun_protocol.registries import (
    NONE,
    Blocked,
    Configuration,
    RegistriesInvalid,
    completed,
    parse,
    sources,
    sources_of,
)

DIGEST = "sha256:" + "0" * 64
TEXT = """
unqualified-search-registries = ["docker.io"]

[[registry]]
prefix = "r.example/a"
location = "store.example:5000/copies/a"
insecure = true
[[registry.mirror]]
location = "m1.example/a"
[[registry.mirror]]
location = "m2.example/a"
insecure = true
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "m3.example/a"
pull-from-mirror = "tag-only"

[[registry]]
location = "r.example"
blocked = true

[[registry]]
prefix = "*.corp.example"
[[registry.mirror]]
location = "proxy.example/corp"

[[registry]]
prefix = "plain.corp.example"
location = "elsewhere.example"
mirror-by-digest-only = true
[[registry.mirror]]
location = "m.example"

[aliases]
"app" = "r.example/a/app"
"""
CONFIGURATION = parse(tomllib.loads(TEXT))


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("other.example/x:1", ["other.example/x"]),
        ("r.example/a:1", ["m1.example/a", "m3.example/a", "store.example:5000/copies/a!"]),
        (
            f"r.example/a/b@{DIGEST}",
            ["m1.example/a/b", "m2.example/a/b!", "store.example:5000/copies/a/b!"],
        ),
        ("x.corp.example:5000/y:1", ["proxy.example/corp/y", "x.corp.example:5000/y"]),
        ("corp.example/y:1", ["corp.example/y"]),
        ("plain.corp.example/y:1", ["elsewhere.example/y"]),
        (f"plain.corp.example/y@{DIGEST}", ["m.example/y", "elsewhere.example/y"]),
        ("app:2", ["m1.example/a/app", "m3.example/a/app", "store.example:5000/copies/a/app!"]),
        ("library/alpine", ["docker.io/library/alpine"]),
    ],
)
def test_sources(reference: str, expected: list[str]) -> None:
    found = [s.name + "!" * s.insecure for s in sources_of(CONFIGURATION, reference)]
    assert found == expected


@pytest.mark.parametrize("reference", ["r.example/b:1", "r.example/ab", "r.example/ab/c:1"])
def test_blocked(reference: str) -> None:
    with pytest.raises(Blocked, match=r"r\.example is blocked"):
        sources_of(CONFIGURATION, reference)


def test_short_names_without_configuration_stay_short() -> None:
    assert completed(NONE, "alpine:1") == "alpine:1"
    assert completed(NONE, "localhost/alpine") == "localhost/alpine"


def test_a_short_name_that_could_be_anybody_s_is_refused() -> None:
    two = parse({"unqualified-search-registries": ["a.example", "b.example"]})
    with pytest.raises(RegistriesInvalid, match="could be of any of"):
        completed(two, "alpine")


def test_a_prefix_with_a_tag() -> None:
    pinned = parse({"registry": [{"prefix": "r.example/a:1", "location": "s.example/b"}]})
    assert sources(pinned, "r.example/a", "1", None)[0].name == "s.example/b"
    assert sources(pinned, "r.example/a", "2", None)[0].name == "r.example/a"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([], "not a table"),
        ({"registries": []}, "unknown name 'registries'"),
        ({"registry": {}}, "arrays of tables"),
        ({"registry": [{"prefx": "a"}]}, "registry: unknown name 'prefx'"),
        ({"registry": [{"location": "a.b", "mirror": [{"locaton": "x"}]}]}, "mirror: unknown"),
        ({"registry": [{}]}, "neither prefix nor location"),
        ({"registry": [{"location": "https://a.b"}]}, "not host"),
        ({"registry": [{"prefix": "a.b/*"}]}, "not host"),
        ({"registry": [{"prefix": "a.b", "location": "x y"}]}, "location 'x y'"),
        ({"registry": [{"location": "a.b"}, {"prefix": "a.b"}]}, "there twice"),
        ({"registry": [{"location": "a.b", "mirror": [{}]}]}, "location"),
        (
            {"registry": [{"location": "a.b", "mirror": [{"location": "c", "pull-from-mirror": "x"}]}]},
            "pull-from-mirror is none of",
        ),
        ({"aliases": {"a.b/c": "d.e/f"}}, "aliases"),
        ({"aliases": {"a": "b"}}, "aliases"),
        ({"registry": [{"location": "a.b", "blocked": "no"}]}, "expected `bool`"),
    ],
)  # fmt: skip
def test_what_is_refused(table: object, said: str) -> None:
    with pytest.raises(RegistriesInvalid, match=said):
        parse(table)


@bounded
@given(changed(tomllib.loads(TEXT)) | a_value, st.text(max_size=40))
def test_any_document_is_read_or_refused(table: object, reference: str) -> None:
    try:
        read = parse(table)
        assert isinstance(read, Configuration)
        assert sources_of(read, reference)
    except (RegistriesInvalid, Blocked) as error:
        assert str(error)


@pytest.mark.parametrize(
    "reference",
    [
        "docker.io/alpine:3",
        "index.docker.io/library/alpine:3",
        "Docker.io/library/alpine",
        "docker.io/library/alpine@sha256:" + "0" * 64,
        "r.example/a",
        "r.example/a:2",
    ],
)
def test_host_and_guest_read_a_reference_alike(reference: str) -> None:
    """The host opens what the guest will ask for."""
    entries = [
        {
            "prefix": "docker.io/library",
            "location": "docker.io/library",
            "mirror": [{"location": "mirror.example/library"}],
        },
        {"prefix": "r.example/a:latest", "location": "r2.example/a"},
    ]
    configuration = parse({"registry": entries})
    guest = parse_reference(reference)
    assert sources_of(configuration, reference) == sources(
        configuration, guest.name, guest.tag, guest.digest
    )
