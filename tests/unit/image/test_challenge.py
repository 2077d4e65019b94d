"""WWW-Authenticate headers, as registries write them and as nobody should."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.image.challenge import Challenge, parse


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            (
                'Bearer realm="https://auth.example/token",service="registry.example",'
                'scope="repository:a/b:pull,push"'
            ),
            Challenge(
                "bearer",
                {
                    "realm": "https://auth.example/token",
                    "service": "registry.example",
                    "scope": "repository:a/b:pull,push",
                },
            ),
        ),
        ('Basic realm="x y"', Challenge("basic", {"realm": "x y"})),
        ('BEARER Realm = "a" , Service=b', Challenge("bearer", {"realm": "a", "service": "b"})),
        (r'Bearer realm="a\"b\\c"', Challenge("bearer", {"realm": 'a"b\\c'})),
        ('Bearer realm="a",realm="b"', Challenge("bearer", {"realm": "a"})),
        ("Bearer", Challenge("bearer", {})),
        ('Bearer realm="unclosed', Challenge("bearer", {})),
    ],
)
def test_reads(header: str, expected: Challenge) -> None:
    assert parse(header) == (expected,)


def test_several_challenges() -> None:
    assert parse('Basic realm="a, b" , Negotiate,Bearer realm="c",service=d') == (
        Challenge("basic", {"realm": "a, b"}),
        Challenge("negotiate", {}),
        Challenge("bearer", {"realm": "c", "service": "d"}),
    )
    assert parse("") == parse(", ") == parse('="') == ()


@given(st.text(alphabet='Bearer realm="\\,= \x00', max_size=200))
def test_any_header_is_read(header: str) -> None:
    parse(header)


def test_a_long_hostile_header_takes_no_time() -> None:
    parse('Bearer realm="' + "\\" * 60_000)
    parse("Bearer " + "a" * 60_000)
    parse("Bearer " + " " * 60_000)
