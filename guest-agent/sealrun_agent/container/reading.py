"""JSON text of the host's into the types of runtime_spec.py; whatever is wrong is named by its place."""

from collections.abc import Iterator
from typing import TypeVar

import msgspec
from sealrun_protocol.decoding import from_json

from sealrun_agent.container.runtime_spec import Part, refused

_Kind = TypeVar("_Kind", bound=Part)


def read(text: bytes, kind: type[_Kind], path: str) -> _Kind:
    """An object of type `kind`. path: where in config.json it stands, empty for the whole of it.

    Raises StartError(SPEC_REFUSED), naming the place."""
    try:
        return from_json(text, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        cause, at, place = str(error).partition(" - at `$")
        cause = cause[:1].lower() + cause[1:].replace("`", "")
        inner = place.rstrip("`") if at and place != "`" else ""
        where = f"{path}{inner}".lstrip(".") or "config.json"
        raise refused(where, cause) from error


def check_for_c(path: str, accepted: Part) -> None:
    """Raises StartError(SPEC_REFUSED) for what a C program would read as something else."""
    for where, cause in _unfit_for_c(path, msgspec.to_builtins(accepted)):
        raise refused(where, cause)


def _unfit_for_c(path: str, value: object) -> Iterator[tuple[str, str]]:
    """JSON path and fault of what a C program would read as something else."""
    if isinstance(value, str):
        if "\0" in value:
            yield path, "it holds a NUL character"
    elif isinstance(value, int):
        if value >= 2**64:
            yield path, "it does not fit into 64 bits"
    elif isinstance(value, dict):
        for key, member in value.items():
            if "\0" in key:
                yield path, "a name in it holds a NUL character"
            yield from _unfit_for_c(f"{path}.{key}" if path else key, member)
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            yield from _unfit_for_c(f"{path}[{index}]", member)
