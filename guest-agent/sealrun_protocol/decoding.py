"""JSON text and plain values into types, from any thread.

msgspec looks at a type when that is decoded for the first time, and marks it as known before it has done so: a
second thread that meets it meanwhile follows a null pointer, which ends the process, and the VM whose first
process that is. So what may run in more than one thread decodes by these functions only
(tests/house/test_decoding.py); one type at a time is looked at here.
"""

import threading
from typing import Any, TypeVar

import msgspec

_Kind = TypeVar("_Kind")

_lock = threading.Lock()
_decoders: dict[Any, "msgspec.json.Decoder[Any]"] = {}


def from_json(text: bytes | str, kind: type[_Kind]) -> _Kind:
    """Raises msgspec.DecodeError, UnicodeDecodeError, RecursionError."""
    value: _Kind = _decoder(kind).decode(text)
    return value


def from_values(value: object, kind: type[_Kind]) -> _Kind:
    """msgspec.convert. Raises msgspec.ValidationError, RecursionError."""
    _decoder(kind)
    return msgspec.convert(value, kind)


def _decoder(kind: type[_Kind]) -> "msgspec.json.Decoder[_Kind]":
    found = _decoders.get(kind)
    if found is None:
        with _lock:
            found = _decoders[kind] = msgspec.json.Decoder(kind)
    return found
