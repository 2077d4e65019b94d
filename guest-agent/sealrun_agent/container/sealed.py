"""Environment values and files that begin with `sealed.`: opened in the guest before crun sees them.

Files: those that the host sends a copy of (secrets among them). What the host shares as a directory it
can change at any time, and stays as it is.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from sealrun_protocol import messages

from sealrun_agent.container.mounts import COPY
from sealrun_agent.container.runtime_spec import Process, refused
from sealrun_agent.container.spec import Accepted

_PREFIX: Final = "sealed."
_REMEMBERED: Final = 64  # values of a container's

Unseal = Callable[[bytes, str], bytes]
"""The value of a sealed secret, which stands at a place: a variable's name, or a file's path. Raises
AttestError."""


def remembering(unseal: Unseal) -> Unseal:
    """The same, for one container: what it was given once it has, and a program that is executed in it
    with the same environment needs no broker. Any thread."""
    known: dict[tuple[bytes, str], bytes] = {}

    def remembered(text: bytes, place: str) -> bytes:
        value = known.get((text, place))
        if value is None:
            value = unseal(text, place)
            if len(known) < _REMEMBERED:
                known[text, place] = value
        return value

    return remembered


def opened(accepted: Accepted, unseal: Unseal) -> Accepted:
    """With the values in place of their seals. Raises AttestError, StartError."""
    spec = accepted.spec
    places = {mount.source: mount.destination for mount in spec.mounts or ()}
    files = {
        name: _file(file, places.get(f"{COPY}/{name}", ""), unseal)
        for name, file in accepted.files.items()
    }
    process = opened_process(spec.process, unseal)
    if process is not spec.process:
        spec = msgspec.structs.replace(spec, process=process)
    return accepted._replace(spec=spec, files=files)


def opened_process(process: Process, unseal: Unseal) -> Process:
    """The same for a program that is executed. Raises AttestError, StartError."""
    environment = process.env or ()
    if not any(_is_sealed(variable) for variable in environment):
        return process
    values = tuple(
        _variable(index, variable, unseal) if _is_sealed(variable) else variable
        for index, variable in enumerate(environment)
    )
    return msgspec.structs.replace(process, env=values)


def _is_sealed(variable: str) -> bool:
    return variable.partition("=")[2].startswith(_PREFIX)


def _variable(index: int, variable: str, unseal: Unseal) -> str:
    name, _, sealed = variable.partition("=")
    try:
        value = unseal(sealed.encode(), name).decode()
    except UnicodeDecodeError as error:
        raise refused(f"process.env[{index}]", "its secret is not text") from error
    if "\0" in value:
        raise refused(f"process.env[{index}]", "its secret has a NUL in it")
    return f"{name}={value}"


def _file(file: messages.File, place: str, unseal: Unseal) -> messages.File:
    if not file.content.startswith(_PREFIX.encode()):
        return file
    return msgspec.structs.replace(file, content=unseal(file.content, place))
