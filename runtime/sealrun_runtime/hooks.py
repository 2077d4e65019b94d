"""Hooks of config.json that run on the host (runtime-spec, "POSIX-platform Hooks").

prestart and createRuntime run in `create`, when the stand-in has the container's namespaces and before
the VM is there, so that they can still lay the network that the VM gets; poststart in `start`, poststop
in `delete`. The last two find their hooks in the state directory and need nothing else: no bundle, no
PATH, no HOME. createContainer and startContainer belong to the guest.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from sealrun_runtime import open_files
from sealrun_runtime.arguments import Invocation
from sealrun_runtime.errors import SealrunError, cause, describe, one_line
from sealrun_runtime.log import Log
from sealrun_runtime.oci_config import Hook

if TYPE_CHECKING:
    import subprocess

_WORDS: Final = 512  # bytes of what a hook says before it fails that are passed on


class HookFailed(SealrunError):
    """A hook could not be run, took too long, or ended with another status than 0."""


def _nowhere() -> None:
    """Of a poststop hook: the state directory is gone, and nobody deletes the container any more."""


def encode(hooks: tuple[Hook, ...]) -> bytes:
    """The content of poststart.json or poststop.json."""
    return msgspec.json.encode(hooks)


def decode(content: bytes) -> tuple[Hook, ...]:
    """Of such a file."""
    return msgspec.json.decode(content, type=tuple[Hook, ...])


def run(hook: Hook, name: str, state: bytes, *, enlist: Callable[[], None] = _nowhere) -> None:
    """Run one hook with the state on its stdin, and wait for it.

    Its environment is what the hook's `env` says and nothing else; its output goes nowhere but, in
    part, into the error's text. name: which hook it is. enlist: what it does first, so that it does not
    outlive the container where this process is killed. Raises HookFailed.
    """
    import subprocess  # most containers have no hooks

    where = f"{name} hook {hook.path}"

    def begin() -> None:
        enlist()
        # The mask is inherited, and `run` holds signals back while it deletes.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        open_files.restore_limit()

    given = os.memfd_create("state")
    said = os.memfd_create("said")
    try:
        os.write(given, state)
        os.lseek(given, 0, os.SEEK_SET)
        process = subprocess.Popen(
            hook.args or (hook.path,),
            executable=hook.path,
            env=_environment(hook),
            cwd="/",
            stdin=given,
            stdout=said,
            stderr=said,
            start_new_session=True,
            preexec_fn=begin,  # noqa: PLW1509 - no threads here
        )
        try:
            status = _wait(process, hook, where)
        except BaseException:  # a signal that calls the work off, too
            _end(process)
            raise
        words = os.pread(said, _WORDS, max(0, os.fstat(said).st_size - _WORDS))
    except OSError as error:
        raise HookFailed(f"cannot run {where}: {cause(error)}") from error
    except subprocess.SubprocessError as error:  # it could not enlist itself
        raise HookFailed(f"cannot run {where}: the container is gone") from error
    finally:
        os.close(given)
        os.close(said)
    if status != 0:
        ending = f"ended with {status}" if status > 0 else f"was killed by signal {-status}"
        detail = words.decode("utf-8", "replace").strip()
        raise HookFailed(f"{where} {ending}: {detail}" if detail else f"{where} {ending}")


def run_poststop(invocation: Invocation, content: bytes, state: bytes) -> None:
    """The poststop hooks of a poststop.json, in order; what fails is a warning."""
    log = Log(invocation.log, invocation.log_format, debug=invocation.debug)
    for hook in decode(content):
        try:
            run(hook, "poststop", state)
        except HookFailed as error:
            text = describe(error)
            log.warning(text)
            if sys.stderr is not None:
                sys.stderr.write(f"sealrun: warning: {one_line(text)}\n")


def _wait(process: "subprocess.Popen[bytes]", hook: Hook, where: str) -> int:
    import subprocess

    try:
        return process.wait(hook.timeout)
    except subprocess.TimeoutExpired as error:
        raise HookFailed(f"{where} did not end within {hook.timeout} s") from error


def _end(process: "subprocess.Popen[bytes]") -> None:
    """With whatever it has started and that is still of its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(hook: Hook) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in hook.env or ())
    return {name: value for name, _, value in pairs if name}
