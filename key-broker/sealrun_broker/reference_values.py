"""Reference values: what a good VM's measurements are, by the names of Trustee's default policy.

One JSON object, name to value: a list, whose members are all good, or one value. In the broker's
directory it is a file that is read again when it changes; it is changed by the operator's command
or by an administrator (POST /reference-value, an RVPS message; kbs-protocol, 10).
"""

import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sealrun_broker import bounds, directory
from sealrun_broker.errors import BrokerError

RVPS_VERSION: Final = "0.1.0"
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")

Scalar = str | int | bool
Value = Scalar | list[Scalar]
References = Mapping[str, Value]


class _Message(msgspec.Struct, frozen=True):
    version: str
    type: str
    payload: str


def parse(text: bytes) -> dict[str, Value]:
    """Raises ValueError; its text names the place."""
    values = msgspec.json.decode(text, type=dict[str, Value])
    for name in values:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name[:100]!a} is not the name of a reference value")
        if "" in listed(values, name):
            raise ValueError(f"the value of {name} is empty")
    return values


def from_message(body: bytes) -> dict[str, Value]:
    """The values in an RVPS message of type `sample`. Raises ValueError."""
    message = msgspec.json.decode(body, type=_Message)
    if message.version != RVPS_VERSION or message.type != "sample":
        raise ValueError(f"it is not a message of version {RVPS_VERSION} and type sample")
    return parse(binascii.a2b_base64(message.payload.encode("ascii"), strict_mode=True))


def listed(references: References, name: str) -> list[Scalar]:
    """All good values of `name`; empty where there is none."""
    value = references.get(name, [])
    return value if isinstance(value, list) else [value]


class ReferenceValues:
    """The values as the file at `path` says them now; no file: no values."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._text = b"{}"
        self._values: dict[str, Value] = {}

    def current(self) -> dict[str, Value]:
        """Raises BrokerError where the file cannot be read."""
        try:
            with open(self._path, "rb") as stream:
                text = stream.read()
        except FileNotFoundError:
            text = b"{}"
        except OSError as error:
            raise BrokerError(f"cannot read {self._path}: {error.strerror}") from error
        if text != self._text:
            try:
                self._values = parse(text)
            except (ValueError, RecursionError) as error:
                raise BrokerError(f"cannot read the reference values: {error}") from error
            self._text = text
        return self._values

    def set(self, values: References) -> None:
        """Add or replace by name; an empty list removes the name. Raises BrokerError."""
        merged = {
            name: value for name, value in {**self.current(), **values}.items() if value != []
        }
        text = msgspec.json.format(msgspec.json.encode(merged, order="sorted"))
        if len(text) > bounds.REFERENCE_BYTES:
            raise BrokerError(
                f"cannot store the reference values: more than {bounds.REFERENCE_BYTES} bytes"
            )
        try:
            directory.write(self._path, text + b"\n")
        except OSError as error:
            raise BrokerError(f"cannot write {self._path}: {error.strerror}") from error


def from_words(name: str, words: list[str]) -> Value:
    """A value from a command line: each word is JSON where it is JSON, else text.

    Raises BrokerError."""
    if not _NAME.fullmatch(name):
        raise BrokerError(f"{name[:100]!a} is not the name of a reference value")
    if "" in words:
        raise BrokerError(f"cannot store reference values: the value of {name} is empty")
    return [_scalar(word) for word in words]


def _scalar(word: str) -> Scalar:
    try:
        value: Any = msgspec.json.decode(word, type=int | bool)
    except ValueError:  # digests are text, even those that are all digits: they are longer
        return word
    return word if isinstance(value, int) and len(word) > 18 else value
