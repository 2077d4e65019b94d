"""Image references: what is read, what is refused, and that nothing but our error comes out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.errors import PullError
from sealrun_agent.image.reference import Reference, parse, split_registry
from sealrun_protocol.errors import ErrorCode

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("docker.io/library/alpine:3.20", ("docker.io", "library/alpine", "3.20", None)),
        ("docker.io/alpine", ("docker.io", "library/alpine", "latest", None)),
        ("index.docker.io/alpine", ("docker.io", "library/alpine", "latest", None)),
        ("docker.io/user/app", ("docker.io", "user/app", "latest", None)),
        ("localhost/app", ("localhost", "app", "latest", None)),
        ("localhost:5000/app:1", ("localhost:5000", "app", "1", None)),
        ("127.0.0.1:5000/a/b/c:v1.0_x-y", ("127.0.0.1:5000", "a/b/c", "v1.0_x-y", None)),
        ("[::1]:5000/a", ("[::1]:5000", "a", "latest", None)),
        ("[fd00::2]/a:1", ("[fd00::2]", "a", "1", None)),
        ("registry.example/a@" + DIGEST, ("registry.example", "a", None, DIGEST)),
        ("registry.example/a:1@" + DIGEST, ("registry.example", "a", "1", DIGEST)),
        ("Registry.Example/a", ("registry.example", "a", "latest", None)),
        ("r.example/a__b/c.d-e--f", ("r.example", "a__b/c.d-e--f", "latest", None)),
    ],
)
def test_reads(text: str, expected: tuple[str, str, str | None, str | None]) -> None:
    assert parse(text) == Reference(*expected)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("REG/a", "short names are not configured"),
        ("", "short names"),
        ("alpine", "short names"),
        ("alpine:3.20", "short names"),
        ("library/alpine", "short names"),
        ("user/app@" + DIGEST, "short names"),
        ("docker://docker.io/library/alpine", "transport"),
        ("r.example/", "repository"),
        ("r.example/A", "repository"),
        ("r.example/a//b", "repository"),
        ("r.example/../b", "repository"),
        ("r.example/a_-b", "repository"),
        ("r.example/a b", "repository"),
        ("r.example/a:", "tag"),
        ("r.example/a:-1", "tag"),
        ("r.example/a:" + "x" * 129, "tag"),
        ("r.example/a:1:2", "tag"),
        ("r.example/a\n:1", "repository"),
        ("r.example/a:1\n", "tag"),
        ("r.example/a@", "digest"),
        ("r.example/a@sha256:0000", "digest"),
        ("r.example/a@" + DIGEST.upper(), "digest"),
        ("r.example/a@sha512:" + "0" * 128, "digest"),
        ("r.example/a@" + DIGEST + "\n", "digest"),
        ("r.example:/a", "port"),
        ("r.example:0/a", "port"),
        ("r.example:65536/a", "port"),
        ("r.example:٣/a", "port"),
        ("r.example:5000x/a", "port"),
        ("-r.example/a", "host name"),
        ("r..example/a", "host name"),
        ("user@r.example/a", "digest"),
        ("[::1/a", "IPv6"),
        ("[1.2.3.4]/a", "IPv6"),
        ("[::1]5000/a", "IPv6"),
        ("[fe80::1%eth0]/a", "IPv6"),
        ("r.example/" + "a" * 250, "255"),
        ("r.example/" + "a" * 5000, "longer"),
    ],
)
def test_refuses(text: str, cause: str) -> None:
    with pytest.raises(PullError, match=cause) as caught:
        parse(text)
    assert caught.value.code is ErrorCode.REFERENCE_INVALID
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


_COMPONENT = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-+)[a-z0-9]{1,5}){0,2}", fullmatch=True)
_REGISTRY = st.sampled_from(["localhost", "r.example", "10.0.0.1:5000", "[fd00::1]:443", "a:1"])
_VERSION = st.one_of(
    st.just(("latest", None)),
    st.tuples(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True), st.none()),
    st.tuples(st.none(), st.just(DIGEST)),
    st.tuples(st.just("1"), st.just(DIGEST)),
)


@given(_REGISTRY, st.lists(_COMPONENT, min_size=1, max_size=4), _VERSION)
def test_reads_what_it_writes(
    registry: str, components: list[str], version: tuple[str | None, str | None]
) -> None:
    reference = Reference(registry, "/".join(components), *version)
    assert parse(str(reference)) == reference
    host, port = split_registry(registry)
    assert host
    assert port is None or 0 < port < 65536


@given(st.text(alphabet="ab/:@.[]-_%1A\x00\n ", max_size=40) | st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        reference = parse(text)
    except PullError as error:
        assert error.code is ErrorCode.REFERENCE_INVALID
    else:
        assert parse(str(reference)) == reference
        assert reference.tag or reference.digest


def test_the_digest_decides_what_is_asked_for() -> None:
    assert parse("r.example/a:1@" + DIGEST).version == DIGEST
    assert parse("r.example/a:1").version == "1"
