"""What the guest reads of a registry's, one function for each kind: bytes to whether they were read.

A target raises nothing but AssertionError, whatever it is given: what is refused is refused by our own errors, in
one line of bounded length.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from fixtures import encryption
from sealrun_agent.errors import AgentError, VerifyError
from sealrun_agent.image import challenge, manifest, reference
from sealrun_agent.image.decrypt import Keys, Opener
from sealrun_agent.image.layer import unpack
from sealrun_agent.image.manifest import Descriptor, Platform
from sealrun_protocol.errors import ErrorCode

CORPUS = Path(__file__).parent / "corpus"
CHUNK = 700  # of a tar: headers lie across its borders
_KEYS = [(CORPUS / name).read_bytes() for name in ("rsa.key", "ec.key")]
_OPENER = Opener(Keys(lambda: _KEYS, lambda _uri: bytes(32)))
_WRAPPED = "org.opencontainers.image.enc.keys."
_PRIVATE = b'{"symkey":"%s","cipheroptions":{"nonce":"%s"}}' % (
    encryption.b64(bytes(32)).encode(),
    encryption.b64(bytes(16)).encode(),
)
_PACKET = encryption.packet(_PRIVATE, bytes(32), "kbs:///default/key/1")
_PUBLIC = encryption.b64(
    b'{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"%s"}' % encryption.b64(bytes(32)).encode()
)
_PLATFORM = Platform("amd64", ("", "v1"))


def _read(read: Callable[[], object]) -> bool:
    try:
        read()
    except AgentError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 1000
        return False
    return True


def of_reference(data: bytes) -> bool:
    """An image's name."""
    text = data.decode("utf-8", "surrogateescape")
    if not _read(lambda: reference.parse(text)):
        return False
    parsed = reference.parse(text)
    assert reference.parse(str(parsed)) == parsed
    host, port = reference.split_registry(parsed.registry)
    assert host
    assert port is None or 0 < port < 65536
    return True


def of_manifest(data: bytes) -> bool:
    """A manifest or index, with the media type that most registries would give it."""

    def read() -> None:
        kind = manifest.media_type_of(data, manifest.MANIFEST_TYPES[0])
        if kind in manifest.INDEX_TYPES:
            assert reference.is_sha256(manifest.select(data, _PLATFORM).digest)
            return
        parsed = manifest.parse_manifest(data)
        for descriptor in (parsed.config, *(layer.descriptor for layer in parsed.layers)):
            assert reference.is_sha256(descriptor.digest)
            assert descriptor.size >= 0

    return _read(read)


def of_jwe(data: bytes) -> bool:
    """A wrapped key (RFC 7516)."""
    return _opened({_WRAPPED + "jwe": encryption.b64(data)})


def of_pkcs7(data: bytes) -> bool:
    """A wrapped key (RFC 5652)."""
    return _opened({_WRAPPED + "pkcs7": encryption.b64(data)})


def of_pubopts(data: bytes) -> bool:
    """A layer's public options, beside a key that opens."""
    annotations = {_WRAPPED + "provider.any": _PACKET}
    return _opened(annotations, encryption.b64(data))


def _opened(annotations: dict[str, str], public: str = _PUBLIC) -> bool:
    whole = annotations | {encryption.PUBLIC_OPTIONS: public}

    def read() -> None:
        key = _OPENER.layer_key(Descriptor("sha256:" + "0" * 64, 1, "x", whole))
        assert (len(key.symkey), len(key.nonce), len(key.hmac)) == (32, 16, 32)

    return _read(read)


def of_auth_header(data: bytes) -> bool:
    """WWW-Authenticate; read where it says where to go, or that a password will do."""
    found = challenge.parse(data.decode("latin-1"))
    assert len(found) <= len(data)
    assert all(one.scheme == one.scheme.lower() for one in found)
    return any(one.parameters.get("realm") or one.scheme == "basic" for one in found)


def of_tar(data: bytes, size: int = CHUNK, *, lowest: bool = False) -> bool:
    """A layer, unpacked as root, that comes in chunks of this size: nothing outside changes."""
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        (here / "layer").mkdir()
        (here / "lower").mkdir()
        (here / "lower/file").write_text("untouched")
        chunks = (data[start : start + size] for start in range(0, len(data), size))
        lowers = [] if lowest else [str(here / "lower")]

        def read() -> None:
            try:
                unpack(chunks, str(here / "layer"), lowers, "layer x")
            except VerifyError as error:
                assert error.code in (
                    ErrorCode.LAYER_MALFORMED,
                    ErrorCode.LAYER_UNSAFE,
                    ErrorCode.LIMIT_EXCEEDED,
                )
                raise

        done = _read(read)
        assert sorted(os.listdir(here)) == ["layer", "lower"]
        assert os.listdir(here / "lower") == ["file"]
        assert (here / "lower/file").read_text() == "untouched"
        assert (here / "lower/file").stat().st_nlink == 1
        return done


TARGETS: dict[str, Callable[[bytes], bool]] = {
    "reference": of_reference,
    "manifest": of_manifest,
    "jwe": of_jwe,
    "pkcs7": of_pkcs7,
    "pubopts": of_pubopts,
    "tar": of_tar,
    "auth_header": of_auth_header,
}


def corpus(target: str) -> dict[str, bytes]:
    """All files of a target, by name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / target).iterdir())}
