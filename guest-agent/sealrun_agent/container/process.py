"""The OCI `process` object: a container's first program, or one that is executed in it later.

Read into types, checked and written again, as spec.py says of the whole config.json.
"""

import re
from typing import Final

import msgspec
from sealrun_protocol import messages

from sealrun_agent.container.reading import check_for_c, read
from sealrun_agent.container.runtime_spec import Capabilities, ConsoleSize, Process, refused

_CAPABILITY: Final = re.compile(r"CAP_[A-Z_]+")
_RLIMIT: Final = re.compile(r"RLIMIT_[A-Z]+")

_encoder = msgspec.json.Encoder()


def decode(request: messages.ExecProcess) -> Process:
    """What is to be executed, accepted. Raises StartError(SPEC_REFUSED)."""
    accepted = accept(read(request.config, Process, "process"), request, "process")
    check_for_c("process", accepted)
    return accepted


def encode(accepted: Process) -> bytes:
    """The text that crun gets."""
    return _encoder.encode(accepted)


def accept(
    given: Process, request: messages.CreateContainer | messages.ExecProcess, path: str
) -> Process:
    """Check, and leave out what the guest does not do. path: of the object in config.json.

    Raises StartError(SPEC_REFUSED)."""
    if given.terminal != request.terminal:
        raise refused(f"{path}.terminal", "the request says otherwise")
    if not given.args or not given.args[0]:
        raise refused(f"{path}.args", "there is no program to run")
    if not given.cwd.startswith("/"):  # with dots in it, too: it is looked up in the container
        raise refused(f"{path}.cwd", f"{given.cwd!a} is not an absolute path")
    for name in Capabilities.__struct_fields__ if given.capabilities else ():
        for index, capability in enumerate(getattr(given.capabilities, name) or ()):
            if not _CAPABILITY.fullmatch(capability):
                raise refused(
                    f"{path}.capabilities.{name}[{index}]", f"{capability!a} is not a capability"
                )
    seen: set[str] = set()
    for index, limit in enumerate(given.rlimits or ()):
        if not _RLIMIT.fullmatch(limit.type) or limit.type in seen or limit.soft > limit.hard:
            raise refused(f"{path}.rlimits[{index}]", f"{limit.type!a} is not a limit to set once")
        seen.add(limit.type)
    return msgspec.structs.replace(
        given, consoleSize=_console_size(given, request), apparmorProfile="", selinuxLabel=""
    )


def _console_size(
    given: Process, request: messages.CreateContainer | messages.ExecProcess
) -> ConsoleSize | None:
    """The host knows the size of the terminal better than config.json."""
    if not request.terminal:
        return None
    if request.rows and request.columns:
        return ConsoleSize(height=request.rows, width=request.columns)
    return given.consoleSize
