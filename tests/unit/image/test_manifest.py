"""Manifests, indexes and configurations: both formats, and what is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.errors import AgentError, PullError, VerifyError
from sealrun_agent.image.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Platform,
    chain_ids,
    media_type_of,
    parse_config,
    parse_manifest,
    select,
)
from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode

AMD64 = Platform("amd64", ("", "v1"))
ARM64 = Platform("arm64", ("v8", ""))
D = ["sha256:" + str(n) * 64 for n in range(10)]
TAR = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def entry(digest: str, **platform: str) -> dict[str, Any]:
    return {"digest": digest, "size": 5, "mediaType": MANIFEST_TYPES[0], "platform": platform}


def index(*entries: Any, **more: Any) -> bytes:
    return encode({"schemaVersion": 2, "manifests": entries, **more})


def manifest(layers: list[Any] | None = None, **more: Any) -> bytes:
    if layers is None:
        layers = [{"digest": D[2], "size": 9, "mediaType": f"{TAR}+gzip"}]
    config = {"digest": D[1], "size": 5, "mediaType": CONFIG}
    return encode({"schemaVersion": 2, "config": config, "layers": layers, **more})


def config(**change: Any) -> bytes:
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [D[3]]}}
    return encode(document | change)


def code_of(raised: pytest.ExceptionInfo[AgentError]) -> ErrorCode:
    return raised.value.code


@pytest.mark.parametrize("media_type", INDEX_TYPES + MANIFEST_TYPES)
def test_the_media_type_stands_in_the_document_or_in_the_header(media_type: str) -> None:
    assert media_type_of(encode({"schemaVersion": 2, "mediaType": media_type}), "x") == media_type
    assert media_type_of(encode({"schemaVersion": 2}), f"{media_type}; charset=x") == media_type


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (b"", ErrorCode.MANIFEST_INVALID),
        (b"[]", ErrorCode.MANIFEST_INVALID),
        (b"{}", ErrorCode.MANIFEST_INVALID),
        (b"\xff", ErrorCode.MANIFEST_INVALID),
        (b"[" * 100_000, ErrorCode.MANIFEST_INVALID),
        (encode({"schemaVersion": 2, "manifests": [], "layers": []}), ErrorCode.MANIFEST_INVALID),
        (
            encode({"schemaVersion": 1, "mediaType": MANIFEST_TYPES[0]}),
            ErrorCode.MEDIA_TYPE_UNSUPPORTED,
        ),
        (encode({"schemaVersion": 2}), ErrorCode.MEDIA_TYPE_UNSUPPORTED),
        (encode({"schemaVersion": 2, "mediaType": "a\nb"}), ErrorCode.MEDIA_TYPE_UNSUPPORTED),
    ],
)
def test_documents_of_no_known_type(document: bytes, code: ErrorCode) -> None:
    with pytest.raises(VerifyError) as caught:
        media_type_of(document, "text/plain")
    assert code_of(caught) is code
    assert "\n" not in str(caught.value)


def test_the_entry_for_this_platform_is_taken() -> None:
    document = index(
        {"digest": D[0], "size": 5},  # an attestation: no platform
        entry(D[1], os="unknown", architecture="unknown"),
        entry(D[2], os="windows", architecture="amd64"),
        entry(D[3], os="linux", architecture="arm64", variant="v8"),
        entry(D[4], os="linux", architecture="amd64", variant="v3"),
        entry(D[5], os="linux", architecture="amd64"),
        entry(D[6], os="linux", architecture="amd64"),
    )
    assert select(document, AMD64).digest == D[5]
    assert select(document, ARM64).digest == D[3]


def test_the_best_variant_is_taken() -> None:
    plain, v8, v9 = (
        entry(D[n], os="linux", architecture="arm64", **({"variant": v} if v else {}))
        for n, v in enumerate(["", "v8", "v9"])
    )
    assert select(index(v9, plain, v8), ARM64).digest == D[1]
    assert select(index(v9, plain), ARM64).digest == D[0]


def test_no_entry_for_this_platform_says_what_there_is() -> None:
    document = index(entry(D[0], os="linux", architecture="s390x"), {"digest": D[1], "size": 1})
    with pytest.raises(PullError, match=r"linux/amd64, only for linux/s390x") as caught:
        select(document, AMD64)
    assert code_of(caught) is ErrorCode.PLATFORM_NOT_FOUND
    with pytest.raises(PullError, match="only for none"):
        select(index(), AMD64)
    v3 = entry(D[0], os="linux", architecture="amd64", variant="v3")
    with pytest.raises(PullError):
        select(index(v3), AMD64)


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (b"{}", ErrorCode.MANIFEST_INVALID),
        (index("x"), ErrorCode.MANIFEST_INVALID),
        (index(entry("sha256:0", os="linux", architecture="amd64")), ErrorCode.MANIFEST_INVALID),
        (index(*[entry(D[0])] * (limits.INDEX_ENTRIES + 1)), ErrorCode.LIMIT_EXCEEDED),
    ],
)
def test_indexes_that_are_refused(document: bytes, code: ErrorCode) -> None:
    with pytest.raises(VerifyError) as caught:
        select(document, AMD64)
    assert code_of(caught) is code


@pytest.mark.parametrize(
    ("media_type", "compression", "encrypted"),
    [
        (TAR, "", False),
        (f"{TAR}+gzip", "gzip", False),
        (f"{TAR}+zstd", "zstd", False),
        (f"{TAR}+encrypted", "", True),
        (f"{TAR}+gzip+encrypted", "gzip", True),
        (f"{TAR}+zstd+encrypted", "zstd", True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "gzip", False),
        ("application/vnd.docker.image.rootfs.diff.tar", "", False),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "gzip", False),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted", "gzip", True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "gzip", False),
    ],
)
def test_layer_types(media_type: str, compression: str, encrypted: bool) -> None:
    document = manifest([{"digest": D[2], "size": 9, "mediaType": media_type}])
    layer = parse_manifest(document).layers[0]
    assert (layer.compression, layer.encrypted) == (compression, encrypted)
    assert (layer.descriptor.digest, layer.descriptor.size) == (D[2], 9)


def _layer(**change: Any) -> bytes:
    return manifest([{"digest": D[2], "size": 9, "mediaType": TAR} | change])


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (b"{}", ErrorCode.MANIFEST_INVALID),
        (_layer(mediaType=f"{TAR}+br"), ErrorCode.MEDIA_TYPE_UNSUPPORTED),
        (_layer(mediaType=f"{TAR}+encrypted+gzip"), ErrorCode.MEDIA_TYPE_UNSUPPORTED),
        (_layer(mediaType="+encrypted"), ErrorCode.MEDIA_TYPE_UNSUPPORTED),
        (_layer(mediaType=""), ErrorCode.MEDIA_TYPE_UNSUPPORTED),
        (_layer(size=-1), ErrorCode.MANIFEST_INVALID),
        (_layer(size=1.5), ErrorCode.MANIFEST_INVALID),
        (_layer(size=limits.LAYER_BLOB_BYTES + 1), ErrorCode.LIMIT_EXCEEDED),
        (_layer(size=1 << 70), ErrorCode.LIMIT_EXCEEDED),
        (_layer(digest="sha256:" + "A" * 64), ErrorCode.MANIFEST_INVALID),
        (_layer(digest="../../etc/passwd"), ErrorCode.MANIFEST_INVALID),
        (_layer(annotations={"a": 1}), ErrorCode.MANIFEST_INVALID),
        (manifest([json.loads(_layer())["layers"][0]] * 257), ErrorCode.LIMIT_EXCEEDED),
        (
            manifest(config={"digest": D[1], "size": 5, "mediaType": "application/x-helm"}),
            ErrorCode.MEDIA_TYPE_UNSUPPORTED,
        ),
        (
            manifest(config={"digest": D[1], "size": 5 << 20, "mediaType": CONFIG}),
            ErrorCode.LIMIT_EXCEEDED,
        ),
    ],
)
def test_manifests_that_are_refused(document: bytes, code: ErrorCode) -> None:
    with pytest.raises(VerifyError) as caught:
        parse_manifest(document)
    assert code_of(caught) is code


def test_a_configuration_is_read() -> None:
    process = {
        "User": "1000:1000",
        "Env": ["A=b"],
        "Entrypoint": None,
        "Cmd": ["sh"],
        "WorkingDir": "/w",
        "Labels": {"x": "y"},
    }
    parsed = parse_config(config(config=process, history=[]), parse_manifest(manifest()), AMD64)
    assert parsed.rootfs.diff_ids == (D[3],)
    assert parsed.config is not None
    assert (parsed.config.env, parsed.config.entrypoint) == (("A=b",), None)
    assert (parsed.config.cmd, parsed.config.user) == (("sh",), "1000:1000")
    assert parsed.config.working_dir == "/w"
    assert parse_config(config(config=None), parse_manifest(manifest()), AMD64).config is None


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (b"{}", ErrorCode.MANIFEST_INVALID),
        (config(rootfs={"diff_ids": []}), ErrorCode.MANIFEST_INVALID),
        (config(rootfs={"diff_ids": [D[3], D[4]]}), ErrorCode.MANIFEST_INVALID),
        (config(rootfs={"diff_ids": ["sha256:zz"]}), ErrorCode.MANIFEST_INVALID),
        (config(config={"Env": "A=b"}), ErrorCode.MANIFEST_INVALID),
        (config(os="windows"), ErrorCode.PLATFORM_NOT_FOUND),
        (config(architecture="arm64"), ErrorCode.PLATFORM_NOT_FOUND),
    ],
)
def test_configurations_that_are_refused(document: bytes, code: ErrorCode) -> None:
    with pytest.raises(AgentError) as caught:
        parse_config(document, parse_manifest(manifest()), AMD64)
    assert code_of(caught) is code


def test_chain_ids_name_a_layer_with_what_is_below_it() -> None:
    chain = chain_ids((D[1], D[2], D[2]))
    assert chain[0] == D[1]
    # sha256 of "sha256:1… sha256:2…", computed with sha256sum
    assert chain[1] == "sha256:9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5"
    assert len(set(chain)) == 3
    assert chain_ids(()) == ()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
_NAMES = st.sampled_from(
    ["schemaVersion", "mediaType", "manifests", "layers", "config", "digest", "size", "platform"]
)


@given(st.dictionaries(_NAMES, _JSON))
def test_any_document_is_read_or_refused(document: dict[str, Any]) -> None:
    data = encode(document)
    known = parse_manifest(manifest())
    for read in (
        lambda: media_type_of(data, ""),
        lambda: select(data, AMD64),
        lambda: parse_manifest(data),
        lambda: parse_config(data, known, AMD64),
    ):
        try:
            read()
        except AgentError as error:
            assert "\n" not in str(error)
