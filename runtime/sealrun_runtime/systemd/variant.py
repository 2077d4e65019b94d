"""Values of a unit's properties as a person writes them in an annotation: GVariant's text format, of
which this is the part that properties of scopes have: numbers, booleans, strings, and arrays of one of
them, with or without their type before them (`uint64 5`, `@as []`).

A value is a D-Bus signature and what jeepney writes for it.
"""

import re
from typing import Final

Value = tuple[str, object]
"""Of a property: its signature, its value."""

_KEYWORDS: Final = {
    "boolean": "b",
    "byte": "y",
    "int16": "n",
    "uint16": "q",
    "int32": "i",
    "uint32": "u",
    "int64": "x",
    "uint64": "t",
    "double": "d",
    "string": "s",
    "objectpath": "o",
}
_RANGES: Final = {
    "y": (0, 2**8 - 1),
    "n": (-(2**15), 2**15 - 1),
    "q": (0, 2**16 - 1),
    "i": (-(2**31), 2**31 - 1),
    "u": (0, 2**32 - 1),
    "x": (-(2**63), 2**63 - 1),
    "t": (0, 2**64 - 1),
}
_TEXTS: Final = ("s", "o")
_ELEMENTS: Final = (*_RANGES, *_TEXTS, "b", "d")
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<string>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|(?P<word>@?[A-Za-z][A-Za-z0-9]*)"
    r"|(?P<number>[-+]?(?:0x[0-9A-Fa-f]+|\d+\.\d*(?:[eE][-+]?\d+)?|\d+))|(?P<mark>[\[\],]))\s*"
)
_ESCAPED: Final = re.compile(r"\\(.)")
_PLAIN: Final = {"n": "\n", "t": "\t"}
_LENGTH: Final = 4096


def parse(text: str) -> Value:
    """Raises ValueError."""
    tokens = _tokens(text)
    value = _value(tokens, "")
    if tokens:
        raise ValueError(f"{tokens[0][1]!r} is one too many")
    return value


def _tokens(text: str) -> list[tuple[str, str]]:
    if len(text) > _LENGTH:
        raise ValueError(f"it is longer than {_LENGTH} characters")
    found, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise ValueError(f"it cannot be read from {text[position : position + 20]!r} on")
        found.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return found


def _value(tokens: list[tuple[str, str]], wanted: str) -> Value:
    """The next value, of the signature `wanted` where one is."""
    kind, text = tokens.pop(0) if tokens else ("end", "")
    if kind == "word" and (text in _KEYWORDS or text.startswith("@")):
        signature = _KEYWORDS.get(text, text[1:])
        if wanted not in ("", signature) or signature.removeprefix("a") not in _ELEMENTS:
            raise ValueError(f"{text} where another type is wanted")
        kind, text = tokens.pop(0) if tokens else ("end", "")
        wanted = signature
    if (kind, text) == ("mark", "["):
        return _array(tokens, wanted)
    return _scalar(kind, text, wanted)


def _array(tokens: list[tuple[str, str]], wanted: str) -> Value:
    if wanted and not wanted.startswith("a"):
        raise ValueError("an array where another type is wanted")
    element = wanted[1:]
    values: list[object] = []
    while tokens and tokens[0] != ("mark", "]"):
        if values and tokens.pop(0) != ("mark", ","):
            raise ValueError("a comma is missing")
        if tokens and tokens[0] == ("mark", "["):
            raise ValueError("an array of arrays")
        element, value = _value(tokens, element)
        values.append(value)
    if not tokens:
        raise ValueError("a bracket is not closed")
    tokens.pop(0)
    if element not in _ELEMENTS:
        raise ValueError("the type of an empty array has to be said")
    return f"a{element}", values


def _scalar(kind: str, text: str, wanted: str) -> Value:
    if kind == "string" and wanted in ("", *_TEXTS):
        plain = _ESCAPED.sub(lambda match: _PLAIN.get(match[1], match[1]), text[1:-1])
        if "\0" in plain or (wanted == "o" and not plain.startswith("/")):
            raise ValueError("it is no such string")
        return wanted or "s", plain
    if kind == "word" and text in ("true", "false") and wanted in ("", "b"):
        return "b", text == "true"
    if kind == "number":
        return _number(text, wanted)
    raise ValueError(f"{text!r} is no value of that type" if text else "a value is missing")


def _number(text: str, wanted: str) -> Value:
    if wanted == "d" or (not wanted and "." in text):
        return "d", float(text)
    if wanted not in ("", *_RANGES) or "." in text:
        raise ValueError(f"{text} is no value of that type")
    signature = wanted or "i"
    number = int(text, 16 if "0x" in text else 10)
    low, high = _RANGES[signature]
    if not low <= number <= high:
        raise ValueError(f"{text} is out of range")
    return signature, number
