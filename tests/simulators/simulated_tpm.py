"""What Cloud Hypervisor does with a TPM emulator (its tpm/src/emulator.rs), and Linux with such a TPM."""

import socket
import struct
import threading
import time
from typing import Final

from sealrun_protocol import tpm2

GET_CAPABILITY, INIT, STOP, SET_DATA_FD, SET_BUFFER_SIZE = 1, 2, 14, 16, 17
ANSWER_SECONDS: Final = 0.1
BUFFER_BYTES: Final = 3968
_RETRY_SECONDS = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)  # Linux: tpm_transmit


class Tpm:
    """seconds: what it waits for an answer. Raises OSError where the emulator does not answer."""

    def __init__(self, path: str, seconds: float = ANSWER_SECONDS) -> None:
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.control.connect(path)
        self.data, theirs = socket.socketpair()
        self.data.settimeout(seconds)
        try:
            with theirs:
                socket.send_fds(self.control, [struct.pack(">I", SET_DATA_FD)], [theirs.fileno()])
                self._result(self.control.recv(64))
            self.command(GET_CAPABILITY)
            self.reset()
        except OSError:
            self.close()
            raise

    def command(self, code: int, *words: int) -> bytes:
        """What the emulator answers on the control channel. Its standard input goes along."""
        with open("/dev/null", "rb") as stdin:
            data = struct.pack(f">{1 + len(words)}I", code, *words)
            socket.send_fds(self.control, [data], [stdin.fileno()])
        return self._result(self.control.recv(64))

    def reset(self) -> None:
        """Switch the TPM off and on, and start it up."""
        self.command(STOP)
        self.command(SET_BUFFER_SIZE, BUFFER_BYTES)
        self.command(INIT, 0)
        tpm2.started(self.transact(tpm2.startup()))

    def transact(self, command: bytes) -> bytes:
        """The answer; one that comes late is left for the next command. Raises OSError."""
        self.data.sendall(command)
        answer = self.data.recv(tpm2.RESPONSE_BYTES)
        if not answer:
            raise ConnectionResetError("the emulator has ended")
        return answer

    def as_linux(self, command: bytes) -> bytes:
        """The answer that a program in the guest gets."""
        answer = self.transact(command)
        for seconds in _RETRY_SECONDS:
            if answer != tpm2.AGAIN:
                break
            time.sleep(seconds)
            answer = self.transact(command)
        return answer

    def close(self) -> None:
        """Its emulator ends."""
        self.control.close()
        self.data.close()

    @staticmethod
    def _result(answer: bytes) -> bytes:
        if answer[:4] != bytes(4):
            raise OSError(0, f"the emulator's control channel answers {answer.hex()}")
        return answer


def device(tpm: Tpm, path: str) -> None:
    """The guest's /dev/tpm0: a socket at `path` that takes commands, in a thread."""
    tpm.as_linux(tpm2.self_test())
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1)

    def serve() -> None:
        with listener.accept()[0] as guest:
            while command := guest.recv(tpm2.RESPONSE_BYTES):
                guest.sendall(tpm.as_linux(command))

    threading.Thread(target=serve, daemon=True).start()
