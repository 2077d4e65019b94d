"""What can go wrong on the host side, split by who is to blame, since that decides what to do.

    SealrunError
    ├── UsageError      the command line
    ├── InvalidRequest  the bundle, an annotation, the init-data: whoever asked for the container
    ├── ConfigError     the operator's sealrun.toml
    ├── NotFound        no container of this id
    ├── WrongState      the container is not in a state that allows the request
    ├── HostError       this machine: a file, a process, a namespace
    │   └── Silent      the shim: it stands still, or was stopped
    └── Reported        what the shim answered: VMM, guest, image, evidence, policy (`kind` says)

A text is one line, lower case, without a full stop: "cannot <verb> <object>: <cause>". `remedy`
says what to do about it. `cli` prints both, once.

Podman and containerd match on texts, so some of them are fixed here. Podman 4 takes *any* "no such
file or directory" of a runtime for a missing program (exit status 127) and any "permission denied"
or "operation not permitted" for a program that is not executable (126): errors that are not about
the container's program say it in other words (`cause`, `describe`).

This module is on the hot path: no imports but `errno`.
"""

import errno

NOT_RUNNING = "container not running"
ALREADY_RUNNING = "cannot start an already running container"
ALREADY_STOPPED = "cannot start a container that has stopped"
NOT_PAUSED = "container not paused"

# Kinds of a Reported error that this side acts upon; the others are ErrorCode values of the guest.
KIND_WRONG_STATE = "wrong-state"
KIND_CLOSED = "pod-closed"
HOST_KINDS = ("host-unfit", "vmm-failed")
# What engines look for in a text, and the exit status that a shell gives.
PROGRAM_KINDS = {
    "program-not-found": ("no such file or directory", 127),
    "program-not-executable": ("permission denied", 126),
}

_CAUSES = {
    errno.ENOENT: "it does not exist",
    errno.EACCES: "access is denied",
    errno.EPERM: "the kernel does not allow it",
}
_MISLEADING = (
    ("no such file or directory", "it does not exist"),
    ("executable file not found in", "no executable in"),
    ("permission denied", "access is denied"),
    ("operation not permitted", "the kernel does not allow it"),
)


class SealrunError(Exception):
    """Base of all errors that are told to the caller as one line. `phase` is where in the life of
    the container it happened, empty where no phase was reached."""

    status = 1
    """What the process exits with; a verb whose own exit status means a program's may set another."""

    def __init__(self, text: str, *, remedy: str = "", phase: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.remedy = remedy
        self.phase = phase


class UsageError(SealrunError):
    """The command line cannot be understood."""


class InvalidRequest(SealrunError):
    """What was asked for cannot be: bundle, annotations, init-data."""


class ConfigError(SealrunError):
    """The operator's settings cannot be read."""


class NotFound(SealrunError):
    """There is no such container."""

    def __init__(self, container: str) -> None:
        super().__init__(f'container "{container}" does not exist')


class WrongState(SealrunError):
    """The container's state does not allow the request."""


class HostError(SealrunError):
    """This machine lacks or refuses something."""


class Silent(HostError):
    """The shim stands still, or was stopped."""


class Reported(SealrunError):
    """The shim's answer to a request that failed. `kind`: see client.py. Where the container's program
    is to blame, the text has the words that engines take their exit status from, also where the guest
    tells no more than a kind."""

    def __init__(self, kind: str, text: str, *, remedy: str = "", phase: str = "") -> None:
        words, self.program_status = PROGRAM_KINDS.get(kind, ("", 0))
        if words and not any(phrase in text.lower() for phrase, _ in _MISLEADING):
            text = f"{text}: {words}"
        super().__init__(text, remedy=remedy, phase=phase)
        self.kind = kind


def cause(error: OSError) -> str:
    """Why a system call failed, in words that no engine takes for something else."""
    if error.errno in _CAUSES:
        return _CAUSES[error.errno]
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def one_line(text: str) -> str:
    """`text` without anything that a terminal or a line-based log would obey: it may be a guest's."""
    return "".join(c if c.isprintable() else " " for c in text)


def describe(error: SealrunError) -> str:
    """The one line for a person: phase, text, remedy."""
    text = f"{error.phase}: {error.text}" if error.phase else error.text
    if error.remedy:
        text += f"; {error.remedy}"
    if not (isinstance(error, Reported) and error.kind in PROGRAM_KINDS):
        text = _without_misleading_words(text)
    return one_line(text)


def _without_misleading_words(text: str) -> str:
    for phrase, replacement in _MISLEADING:
        at = text.lower().find(phrase)
        while at >= 0:
            text = text[:at] + replacement + text[at + len(phrase) :]
            at = text.lower().find(phrase, at + len(replacement))
    return text
