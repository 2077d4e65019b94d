"""Whatever a registry sends as a layer or an annotation: our error or a good answer, in bounded time.

The corpus is what real writers make (skopeo's and CoCo's forms, GNU tar's sparse files, pax), and what once
was trouble; hypothesis changes it so that most of its form stays.
"""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fixtures import encryption, layers
from fixtures.hostile import a_value, bounded, changed, spliced
from fuzz.targets import of_tar
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sealrun_agent.errors import AgentError, DecryptError, VerifyError
from sealrun_agent.image import sparse
from sealrun_agent.image.archive import Archive
from sealrun_agent.image.decrypt import Keys, Opener
from sealrun_agent.image.manifest import Descriptor
from sealrun_protocol.errors import ErrorCode

few = settings(max_examples=60, deadline=None)  # RSA takes its time
pytestmark = pytest.mark.root

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
KEK = bytes(32)
PRIVATE = {
    "symkey": encryption.b64(KEK),
    "digest": "sha256:" + "0" * 64,
    "cipheroptions": {"nonce": encryption.b64(bytes(16))},
}
PUBLIC = {"cipher": "AES_256_CTR_HMAC_SHA256", "hmac": encryption.b64(KEK)}
SECRET = json.dumps(PRIVATE).encode()
PACKET = json.loads(base64.b64decode(encryption.packet(SECRET, KEK, "kbs:///default/key/1")))
JWE = base64.b64decode(encryption.wrapped(SECRET, KEY))
ENVELOPE = encryption.envelope(SECRET, KEY)
FIELDS = {
    "GNU.sparse.major": "1", "GNU.sparse.minor": "0",
    "GNU.sparse.name": "sparse", "GNU.sparse.realsize": "100000",
}  # fmt: skip
OLD_SPARSE = (
    b"\0" * 386 + b"00000000000\0" + b"00000000005\0" + b"00000065536\0" + b"00000000005\0"
).ljust(483, b"\0") + b"00000200000\0".ljust(29, b"\0")
CORPUS = layers.tar(
    [
        layers.directory("d", mode=0o711),
        layers.file("d/file", b"1" * 700, pax_headers={"SCHILY.xattr.user.x": "y", "mtime": "1.5"}),
        layers.file("n" * 150, b"2"),
        layers.link("link", "d/file"),
        layers.symlink("symlink", "../d"),
        layers.file("symlink/through", b"3"),
        layers.file("d/.wh.gone"),
        layers.file("sparse", b"2\n0\n5\n65536\n5\n".ljust(512, b"\0") + b"x" * 10,
                    pax_headers=FIELDS),
    ]
)  # fmt: skip
PUT = "org.opencontainers.image.enc.keys."


def resource(uri: str) -> bytes:
    """The broker knows one key."""
    if uri != "kbs:///default/key/1":
        raise DecryptError(ErrorCode.KEY_NOT_FOUND, "unknown")
    return KEK


OPENER = Opener(Keys(lambda: [PEM], resource))


def opened(annotations: dict[str, str]) -> bool:
    """Whether a layer of these annotations is opened; else it is refused in one line."""
    try:
        key = OPENER.layer_key(Descriptor("sha256:" + "0" * 64, 1, "x", annotations))
    except AgentError as error:
        assert str(error).isprintable()
        return False
    assert (len(key.symkey), len(key.nonce), len(key.hmac)) == (32, 16, 32)
    return True


def annotated(scheme: str, wrapped: bytes, public: object = PUBLIC) -> dict[str, str]:
    pubopts = encryption.b64(json.dumps(public).encode())
    return {encryption.PUBLIC_OPTIONS: pubopts, PUT + scheme: encryption.b64(wrapped)}


def test_the_honest_ones_are_opened() -> None:
    assert opened(annotated("jwe", JWE))
    assert opened(annotated("pkcs7", ENVELOPE))
    assert opened(annotated("provider.attestation-agent", json.dumps(PACKET).encode()))


@few
@given(spliced(JWE))
def test_jwe(text: bytes) -> None:
    assert opened(annotated("jwe", text)) or text != JWE


@few
@given(changed(json.loads(JWE)), changed(json.loads(JWE)))
def test_members_of_jwe(jwe: dict[str, object], recipient: dict[str, object]) -> None:
    opened(annotated("jwe", json.dumps(jwe | {"recipients": [recipient]}).encode()))
    opened(annotated("jwe", json.dumps(jwe).encode()))


@few
@given(spliced(ENVELOPE))
@example(ENVELOPE[:4] + b"\x80" + ENVELOPE[5:])
@example(b"\x30\x84\xff\xff\xff\xff")
def test_pkcs7(envelope: bytes) -> None:
    opened(annotated("pkcs7", envelope))


@few
@given(changed(PACKET))
def test_packets(packet: dict[str, object]) -> None:
    opened(annotated("provider.any", json.dumps(packet).encode()))


@bounded
@given(changed(PUBLIC) | a_value, changed(PRIVATE) | a_value)
def test_options(public: object, private: object) -> None:
    wrapped = encryption.envelope(json.dumps(private).encode(), KEY)
    opened(annotated("pkcs7", wrapped, public))


@bounded
@given(st.dictionaries(st.sampled_from([encryption.PUBLIC_OPTIONS, PUT + "jwe", PUT + "pkcs7",
                                        PUT + "provider.", PUT + "pgp"]), st.text(max_size=40)))  # fmt: skip
def test_annotations(annotations: dict[str, str]) -> None:
    assert not opened(annotations)


@settings(max_examples=200, deadline=None)
@given(data=spliced(CORPUS), size=st.integers(1, 4096), lowest=st.booleans())
@example(data=CORPUS, size=512, lowest=True)
def test_tars(data: bytes, size: int, lowest: bool) -> None:
    of_tar(data, size, lowest=lowest)


class Records:
    """The data that a sparse map stands in."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, count: int) -> bytes:
        data, self.data = self.data[:count], self.data[count:]
        if len(data) < count:
            raise self.malformed("short")
        return data

    malformed = Archive(iter(()), "layer x").malformed


@bounded
@given(
    spliced(OLD_SPARSE),
    st.lists(st.binary(min_size=512, max_size=512), max_size=3),
    changed({name: value for name, value in FIELDS.items() if name != "GNU.sparse.name"}),
    spliced(b"2\n0\n5\n65536\n5\n".ljust(512, b"\0")),
)
def test_sparse_maps(
    header: bytes, blocks: list[bytes], fields: dict[str, object], leading: bytes
) -> None:
    records = {
        name.encode(): str(value).encode("utf-8", "replace") for name, value in fields.items()
    }
    source = Records(leading)
    for read in (
        lambda: sparse.old_gnu(header.ljust(512, b"\0"), iter([*blocks, bytes(512)]), source),
        lambda: sparse.pax(records, source),
    ):
        try:
            segments, size = read()
        except (VerifyError, StopIteration):
            continue
        position = 0
        for offset, length in segments:
            assert position <= offset
            assert length >= 0
            position = offset + length
        assert position <= size
