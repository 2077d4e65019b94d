"""What a request to the shim can fail with, as the control connection tells it.

    ShimError           kind, text, remedy
    ├── WrongState      the container's state does not allow the request
    ├── NotFound        no container of this id in this sandbox
    ├── Refused         the sandbox cannot have such a container in it
    ├── PodClosed       it takes no containers any more; another of the same pod may
    ├── Misuse          the request is none of the control protocol's: a bug of the caller
    ├── HostUnfit       this machine cannot boot the VM
    ├── HostFailed      a file or a cgroup of this machine
    ├── VmmFailed       the VM did not start, or ended before its time
    ├── CalledOff       whoever asked for the container went away or deleted it
    └── GuestFailed     the guest said so, said nothing, or said nonsense; `kind` is its ErrorCode

Texts come to a person and may hold words of the guest: one line, printable, bounded (`wire_text`).
"""

from typing import Final

from sealrun_protocol import limits
from sealrun_protocol.errors import ERRORS, ErrorCode, Phase

from sealrun_runtime.errors import KIND_CLOSED, PROGRAM_KINDS, one_line

PROGRAM_CODES: Final = frozenset(PROGRAM_KINDS)


class ShimError(Exception):
    """Base: an answer `error KIND TEXT REMEDY`."""

    kind = "internal"

    def __init__(self, text: str, *, remedy: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.remedy = remedy


class WrongState(ShimError):
    """The container's state does not allow the request."""

    kind = "wrong-state"


class NotFound(ShimError):
    """No container of this id in this sandbox."""

    kind = "not-found"


class Refused(ShimError):
    """The container does not fit into this sandbox."""

    kind = "refused"


class PodClosed(ShimError):
    """This sandbox takes no containers any more."""

    kind = KIND_CLOSED


class Misuse(ShimError):
    """Not a request of the control protocol."""


class HostUnfit(ShimError):
    """This machine lacks what the VM needs."""

    kind = "host-unfit"


class HostFailed(ShimError):
    """A file, a descriptor or a cgroup of this machine."""

    kind = "host-unfit"


class VmmFailed(ShimError):
    """The VM did not start, or ended before its time."""

    kind = "vmm-failed"


class CalledOff(ShimError):
    """Nobody wants the container any more."""

    kind = "wrong-state"


class GuestFailed(ShimError):
    """The guest said so, said nothing, or said nonsense."""

    def __init__(self, code: ErrorCode, text: str, *, remedy: str = "") -> None:
        super().__init__(text, remedy=remedy)
        self.kind = code.value
        self.code = code


def guest_failed(phase: Phase, code: ErrorCode, text: str) -> GuestFailed:
    """The error for a Failed or AgentFailed of the guest: phase, fixed sentence, the guest's own
    words. Of a program that cannot be executed only the guest's words: engines match on them."""
    info = ERRORS[code]
    text = wire_text(text)
    if code.value in PROGRAM_CODES:
        return GuestFailed(code, text or info.summary, remedy=info.remedy)
    detail = f": {text}" if text and text != info.summary else ""
    return GuestFailed(code, f"{phase.value}: {info.summary}{detail}", remedy=info.remedy)


def wire_text(text: str) -> str:
    """`text` as one bounded line that no terminal, log or datagram of ours would obey."""
    line = one_line(text[: limits.ERROR_TEXT_BYTES]).strip()
    return line.encode("utf-8", "replace")[: limits.ERROR_TEXT_BYTES].decode("utf-8", "ignore")
