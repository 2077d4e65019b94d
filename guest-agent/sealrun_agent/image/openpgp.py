"""OpenPGP signed messages, checked by gpgv: what was signed, if one of the given keys signed it.

gpgv is GnuPG's verifier alone: it has no key store, no agent and no network, and takes every key of the one
keyring that it is given for trusted. Its verdict is read from its status lines (doc/DETAILS), not from its
exit status: whoever reaps the agent's children may be faster. Nothing is written to a file system.
"""

import binascii
import os
import select
import signal
from contextlib import ExitStack, suppress
from typing import Final

GPGV: Final = "/usr/bin/gpgv"
_SECONDS: Final = 60.0
_OUTPUT_BYTES: Final = 1 << 20
_STATUS: Final = b"[GNUPG:] "
_BAD: Final = (
    b"BADSIG",
    b"ERRSIG",
    b"EXPSIG",
    b"EXPKEYSIG",
    b"REVKEYSIG",
    b"NODATA",
    b"UNEXPECTED",
)
_BEGIN: Final = b"-----BEGIN PGP PUBLIC KEY BLOCK-----"
_END: Final = b"-----END PGP PUBLIC KEY BLOCK-----"


class NotSigned(Exception):
    """The text says why, in one line."""


def signed_content(message: bytes, keys: bytes) -> bytes:
    """keys: binary or armored. Raises NotSigned."""
    status, content = _gpgv(message, dearmored(keys))
    lines = [line[len(_STATUS) :] for line in status.splitlines() if line.startswith(_STATUS)]
    words = [line.partition(b" ")[0] for line in lines]
    for bad in _BAD:
        if bad in words:
            raise NotSigned(f"gpgv says {bad.decode()}")
    if [words.count(word) for word in (b"NEWSIG", b"GOODSIG", b"VALIDSIG")] != [1, 1, 1]:
        raise NotSigned("it is not one good OpenPGP signature")
    return content


def dearmored(keys: bytes) -> bytes:
    """The packets of all armored blocks (RFC 4880, 6.2), or what was given where there is none. Raises
    NotSigned. The checksum is not compared: it protects from nobody."""
    if _BEGIN not in keys:
        return keys
    packets = b""
    for block in keys.split(_BEGIN)[1:]:
        _, _, body = block.partition(_END)[0].replace(b"\r", b"").partition(b"\n\n")
        lines = [line for line in body.split(b"\n") if line and not line.startswith(b"=")]
        try:
            packets += binascii.a2b_base64(b"".join(lines), strict_mode=True)
        except binascii.Error as error:
            raise NotSigned("the policy's OpenPGP key is not base64") from error
    return packets


def _gpgv(message: bytes, keyring: bytes) -> tuple[bytes, bytes]:
    """Its status lines and what was signed."""
    with ExitStack() as files:

        def file(name: str, content: bytes = b"") -> int:
            fd = os.memfd_create(name)
            files.callback(os.close, fd)
            os.write(fd, content)
            os.lseek(fd, 0, os.SEEK_SET)
            return fd

        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        files.callback(os.close, null)
        content, status = file("content"), file("status")
        targets = [file("message", message), content, null, file("keyring", keyring), status]
        # High numbers first, so that no copy overwrites one that is still to be made.
        moved = [_duplicate(fd, files) for fd in targets]
        actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(moved)]
        command = [GPGV, "--quiet", "--homedir", "/nonexistent", "--keyring", "/proc/self/fd/3",
                   "--status-fd", "4", "--output", "-", "-"]  # fmt: skip
        try:
            pid = os.posix_spawn(GPGV, command, {}, file_actions=actions)
        except OSError as error:
            raise NotSigned(f"gpgv cannot be run: {error.strerror}") from error
        if not _wait(pid):
            raise NotSigned(f"gpgv took more than {_SECONDS:.0f} s")
        return _read(status), _read(content)


def _duplicate(fd: int, files: ExitStack) -> int:
    import fcntl

    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
    files.callback(os.close, copy)
    return copy


def _wait(pid: int) -> bool:
    """Until the program has ended, whoever takes its status; kill it where it takes too long."""
    ended = True
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            ready = select.poll()
            ready.register(process, select.POLLIN)
            if not ready.poll(_SECONDS * 1000):
                ended = False
                signal.pidfd_send_signal(process, signal.SIGKILL)
                ready.poll()
        finally:
            os.close(process)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    return ended


def _read(fd: int) -> bytes:
    return os.pread(fd, _OUTPUT_BYTES, 0)
