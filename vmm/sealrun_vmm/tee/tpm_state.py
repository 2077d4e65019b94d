"""What a TPM keeps while it is off: the seeds of all its keys, and which banks of PCRs it has.

One such state is made per host, and every VM's TPM starts as a copy of it. So all have the same
attestation key, which a key broker can be told to trust; each has PCRs of its own.
"""

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Final

from sealrun_protocol import tpm2

from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.process import printable

FILE: Final = "tpm2-00.permall"  # swtpm's name for it
_SECONDS: Final = 30.0
_ANSWER_BYTES: Final = 4096
_REMEDY: Final = (
    "look whether swtpm works, or set vm.tpm_state in sealrun.toml to a directory for it"
)

# Trusted Platform Module Library, part 2 and 3
_SESSIONS: Final = 0x8002
_NO_SESSIONS: Final = 0x8001
_PCR_ALLOCATE: Final = 0x12B
_SHUTDOWN: Final = 0x145
_PLATFORM: Final = 0x4000000C
_PASSWORD: Final = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
_SHA1, _SHA256, _SHA384, _SHA512 = 0x4, 0xB, 0xC, 0xD
_HEADER: Final = struct.Struct(">HII")


def make(program: str, directory: str) -> str:
    """The state's file in `directory`, made by the TPM emulator `program` where there is none yet.

    Raises HostUnfit."""
    path = os.path.join(directory, FILE)
    if os.path.exists(path):
        return path
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as place:
            _manufacture(program, place)
            # Whoever comes first; a key that was told to somebody must not change.
            with contextlib.suppress(FileExistsError):
                os.link(os.path.join(place, FILE), path)
    except (OSError, subprocess.SubprocessError, struct.error) as error:
        raise _unfit(directory, _words(error)) from error
    return path


def require(directory: str) -> None:
    """Raise HostUnfit where `make` would find neither a state in `directory` nor a place for one."""
    path = os.path.join(directory, FILE)
    why = None
    if not directory:
        why = "vm.tpm_state is empty"
    elif os.path.lexists(path):
        # One without a length is what a host that lost its power may leave.
        if not (os.path.isfile(path) and os.access(path, os.R_OK) and os.path.getsize(path)):
            why = f"{path} is empty, or cannot be read"
    else:
        place = directory
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place):
            why = f"{place} is no directory"
        elif not os.access(place, os.W_OK | os.X_OK):
            why = f"{place} cannot be written"
    if why is not None:
        raise _unfit(directory, why)


def copy(state: str, directory: str, user: int) -> None:
    """Give a VM's TPM, which runs as `user`, its own state in the new `directory`. Raises OSError."""
    os.mkdir(directory, mode=0o700)
    path = os.path.join(directory, FILE)
    shutil.copyfile(state, path)
    os.chmod(path, 0o600)
    for owned in (path, directory):
        os.chown(owned, user, user)


def attestation_key(program: str, state: str) -> bytes:
    """The public attestation key of every TPM that starts from `state`, as DER (SubjectPublicKeyInfo).

    Raises HostUnfit."""
    try:
        with tempfile.TemporaryDirectory() as place:
            shutil.copyfile(state, os.path.join(place, FILE))
            with _emulator(program, place) as endpoint:
                endpoint.sendall(tpm2.create_attestation_key())
                return tpm2.created(endpoint.recv(_ANSWER_BYTES)).public
    except (OSError, subprocess.SubprocessError, tpm2.TpmError) as error:
        raise HostUnfit(
            f"cannot get the attestation key of {state}: {_words(error)}", remedy=_REMEDY
        ) from error


def _manufacture(program: str, place: str) -> None:
    """Raises OSError, SubprocessError, struct.error."""
    # One bank, since each costs the firmware a hash over all that it measures.
    selection = b"".join(
        struct.pack(">HB3s", bank, 3, b"\xff" * 3 if bank == _SHA256 else bytes(3))
        for bank in (_SHA1, _SHA256, _SHA384, _SHA512)
    )
    session = struct.pack(">II", _PLATFORM, len(_PASSWORD)) + _PASSWORD
    with _emulator(program, place) as endpoint:
        _ask(endpoint, _SESSIONS, _PCR_ALLOCATE, session + struct.pack(">I", 4) + selection)
        _ask(endpoint, _NO_SESSIONS, _SHUTDOWN, bytes(2))


@contextlib.contextmanager
def _emulator(program: str, place: str) -> Iterator[socket.socket]:
    """A TPM that was switched on, with its state in `place`; it ends with the block. Raises OSError,
    SubprocessError."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(_SECONDS)
        command = [program, "socket", "--tpm2", "--tpmstate", "dir=.", "--flags", "startup-clear"]
        process = subprocess.Popen(
            [*command, "--fd", str(theirs.fileno())],
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
        try:
            theirs.close()
            yield ours
            ours.close()
            process.wait(_SECONDS)
        finally:
            process.kill()
            process.wait()


def _ask(tpm: socket.socket, tag: int, code: int, body: bytes) -> None:
    """One command that must succeed. Raises OSError, struct.error."""
    tpm.sendall(_HEADER.pack(tag, _HEADER.size + len(body), code) + body)
    _, _, result = _HEADER.unpack_from(tpm.recv(_ANSWER_BYTES))
    if result != 0:
        raise OSError(0, f"it answers command {code:#x} with {result:#x}")


def _unfit(directory: str, why: str) -> HostUnfit:
    return HostUnfit(f"cannot make the state of a TPM in {directory}: {why}", remedy=_REMEDY)


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or printable(str(error))
