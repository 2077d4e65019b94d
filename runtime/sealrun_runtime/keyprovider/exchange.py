"""One call of ocicrypt's key provider protocol: a JSON object in, a JSON object out.

Bytes are base64 texts where Go wrote the JSON and arrays of numbers where CoCo's Rust did; both are read.
Answers are arrays, which both read. Of the parameters only those of a provider of this protocol's own
text form are looked at: `keyid=kbs:///…::keypath=FILE::algorithm=A256GCM`, pairs in any order.
"""

import uuid
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from sealrun_protocol.resource_uri import ResourceName, ResourceNameInvalid, parse_uri

from sealrun_runtime.keyprovider import packet
from sealrun_runtime.keyprovider.packet import PacketInvalid

PROVIDER: Final = "attestation-agent"
DEFAULT: Final = "kbs:///default/image-kek/"
_ALGORITHMS: Final = ("", "A256GCM")
_WORDS: Final = ("keyid", "keypath", "algorithm")


class RequestInvalid(Exception):
    """What ocicrypt asks cannot be done; the text says why, in one line."""


class Wish(NamedTuple):
    """name: of the key. named: whether somebody named it. path: of a file that has the key, or empty."""

    name: ResourceName
    named: bool
    path: str


class Keys(Protocol):
    """Where keys are. Both raise RequestInvalid."""

    def for_wrapping(self, wish: Wish) -> bytes:
        """An existing key or a new one, which is where a guest will look for it before this returns."""

    def for_unwrapping(self, wish: Wish) -> bytes:
        """An existing key."""


_Bytes = str | list[int] | None


class _Parameters(msgspec.Struct, frozen=True):
    parameters: dict[str, list[_Bytes] | None] | None = msgspec.field(
        default=None, name="Parameters"
    )


class _Wrap(msgspec.Struct, frozen=True):
    ec: _Parameters | None = None
    optsdata: _Bytes = None


class _Unwrap(msgspec.Struct, frozen=True):
    dc: _Parameters | None = None
    annotation: _Bytes = None


class _Request(msgspec.Struct, frozen=True):
    op: str
    keywrapparams: _Wrap = _Wrap()
    keyunwrapparams: _Unwrap = _Unwrap()


def answer(text: bytes, keys: Keys, provider: str = PROVIDER) -> bytes:
    """The answer to a request. Raises RequestInvalid."""
    try:
        request = msgspec.json.decode(text, type=_Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestInvalid(f"the request is none of ocicrypt's: {error}") from error
    operations: dict[str, Callable[[], dict[str, Any]]] = {
        "keywrap": lambda: _wrapped(request.keywrapparams, keys, provider),
        "keyunwrap": lambda: _unwrapped(request.keyunwrapparams, keys, provider),
    }
    if request.op not in operations:
        raise RequestInvalid(f"unknown operation {request.op[:40]!a}")
    return msgspec.json.encode(operations[request.op]())


def wish_of(text: str) -> Wish:
    """What a parameter asks for. Raises RequestInvalid."""
    given: dict[str, str] = {}
    for pair in filter(None, text.split("::")):
        word, equals, value = pair.partition("=")
        if not equals or word not in _WORDS or word in given:
            raise RequestInvalid(
                f"cannot read {pair[:80]!a}: write keyid=kbs:///…::keypath=FILE::algorithm=A256GCM"
            )
        given[word] = value
    if given.get("algorithm", "") not in _ALGORITHMS:
        raise RequestInvalid(f"unknown algorithm {given['algorithm'][:40]!a}: it is A256GCM")
    uri = given.get("keyid") or f"{DEFAULT}{uuid.uuid4()}"
    # CoCo's provider also takes a bare path.
    uri = uri if uri.startswith("kbs") else f"kbs:///{uri.lstrip('/')}"
    try:
        return Wish(parse_uri(uri), "keyid" in given, given.get("keypath", ""))
    except ResourceNameInvalid as error:
        raise RequestInvalid(str(error)) from error


def _wrapped(wrap: _Wrap, keys: Keys, provider: str) -> dict[str, Any]:
    wish = wish_of(_text(wrap.ec, provider))
    options = _bytes(wrap.optsdata)
    if not options:
        raise RequestInvalid("the request has nothing to wrap")
    key = keys.for_wrapping(wish)
    annotation = packet.wrap(options, key, f"kbs:///{wish.name}")
    return {"keywrapresults": {"annotation": list(annotation)}}


def _unwrapped(unwrap: _Unwrap, keys: Keys, provider: str) -> dict[str, Any]:
    try:
        read = packet.parse(_bytes(unwrap.annotation))
        name = parse_uri(read.kid)
        text = _text(unwrap.dc, provider)
        path = wish_of(text).path if "=" in text else ""
        options = packet.unwrap(read, keys.for_unwrapping(Wish(name, True, path)))
    except (PacketInvalid, ResourceNameInvalid) as error:
        raise RequestInvalid(str(error)) from error
    return {"keyunwrapresults": {"optsdata": list(options)}}


def _text(given: _Parameters | None, provider: str) -> str:
    """The parameter of this provider; empty where there is none."""
    parameters = (given.parameters if given else None) or {}
    values = parameters.get(provider) or []
    try:
        return _bytes(values[0]).decode() if values else ""
    except UnicodeDecodeError as error:
        raise RequestInvalid("the provider's parameter is no text") from error


def _bytes(value: _Bytes) -> bytes:
    try:
        if isinstance(value, str):
            return a2b_base64(value, strict_mode=True)
        return bytes(value or ())
    except (Base64Error, ValueError) as error:
        raise RequestInvalid("the request has bytes that are neither base64 nor numbers") from error
