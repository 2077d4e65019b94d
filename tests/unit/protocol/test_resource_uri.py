"""Names of a broker's resources: a path that can never leave its directory."""

import os.path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_protocol.resource_uri import (
    ResourceName,
    ResourceNameInvalid,
    parse_name,
    parse_uri,
)


@pytest.mark.parametrize(
    "uri",
    [
        "kbs:///default/key/app-1.2_x",
        "kbs://broker.example.com:8443/default/key/app-1.2_x",
        "kbs+resource:///default/key/app-1.2_x",
    ],
)
def test_the_host_is_ignored(uri: str) -> None:
    name = parse_uri(uri)
    assert name == ResourceName("default", "key", "app-1.2_x")
    assert str(name) == "default/key/app-1.2_x"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "kbs://",
        "kbs:///",
        "kbs:///a/b",
        "kbs:///a/b/c/d",
        "kbs:///a/b/",
        "kbs:////b/c",
        "kbs:///a/b/c?x=1",
        "kbs:///a/b/c#f",
        "kbs:///a/../c",
        "kbs:///a/.b/c",
        "kbs:///a/b/c%2f",
        "kbs:///a/b/c\n",
        "kbs:///a/b/é",
        "kbs+:///a/b/c",
        "kbs+pkcs11:///a/b/c",
        "KBS:///a/b/c",
        "https://a/b/c/d",
        "kbs:/a/b/c",
        f"kbs:///a/b/{'c' * 256}",
    ],
)
def test_uris_that_are_none(uri: str) -> None:
    with pytest.raises(ResourceNameInvalid) as caught:
        parse_uri(uri)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40) | st.from_regex(r"[./a-z-]{0,20}"))
def test_what_is_accepted_stays_below_its_directory(text: str) -> None:
    try:
        name = parse_name(text)
    except ResourceNameInvalid:
        return
    assert os.path.normpath(f"/store/{name}") == f"/store/{text}"
