"""What stands between a VMM that starts the kernel itself and its TPM emulator, with a real emulator."""

import hashlib
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sealrun_protocol import tpm2
from sealrun_vmm.measurement import measured_boot
from sealrun_vmm.tee import tpm_relay
from simulators.simulated_tpm import Tpm

pytestmark = pytest.mark.tpm

EVENTS = [(4, hashlib.sha256(b"kernel").digest()), (9, hashlib.sha256(b"options").digest())]
SECONDS = 60.0


class Vmm(Tpm):
    """It waits longer than Cloud Hypervisor, but where a test says otherwise."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), SECONDS)

    def patiently(self, command: bytes) -> tuple[bytes, int]:
        """The answer, and how often it took another try."""
        for again in range(1000):
            if (answer := self.transact(command)) != tpm2.AGAIN:
                return answer, again
            time.sleep(0.01)
        raise AssertionError("it never answers")


class Relay(NamedTuple):
    path: Path
    emulator: "subprocess.Popen[bytes]"
    failures: list[str]


Started = Callable[..., Relay]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """started(measure=…) is a relay with an emulator behind it."""
    emulators: list[subprocess.Popen[bytes]] = []

    def start(measure: Callable[[], tpm_relay.Events] = lambda: EVENTS) -> Relay:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(tmp_path / "tpm.sock"))
        listener.listen(1)
        ours, theirs = socket.socketpair()
        number = theirs.fileno()
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path}", "--terminate"]
        with theirs:
            emulator = subprocess.Popen(
                [*command, "--ctrl", f"type=unixio,clientfd={number}"],
                pass_fds=(number,),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        emulators.append(emulator)
        failures: list[str] = []
        tpm_relay.start(listener, ours, measure, failures.append)
        return Relay(tmp_path / "tpm.sock", emulator, failures)

    yield start
    for emulator in emulators:
        emulator.kill()
        emulator.wait()


@pytest.fixture
def relay(started: Started) -> Relay:
    return started()


@pytest.fixture
def vmm(relay: Relay) -> Iterator[Vmm]:
    vmm = Vmm(relay.path)
    yield vmm
    vmm.close()


def asked_in_vain(relay: Relay, vmm: Vmm, command: bytes) -> None:
    """One that takes long, however fast the machine and however busy."""
    relay.emulator.send_signal(signal.SIGSTOP)
    assert vmm.transact(command) == tpm2.AGAIN
    relay.emulator.send_signal(signal.SIGCONT)


def pcrs(vmm: Vmm) -> dict[int, bytes]:
    return dict(tpm2.pcrs(vmm.patiently(tpm2.read_pcrs([0, 4, 9]))[0]))


def test_what_is_booted_was_measured_before_the_vmm_goes_on(vmm: Vmm) -> None:
    extended = {pcr: measured_boot.replay([digest], "sha256") for pcr, digest in EVENTS}
    assert pcrs(vmm) == {0: bytes(32)} | extended


def test_it_was_started_up_and_has_tested_itself(vmm: Vmm) -> None:
    """What Linux does first."""
    assert vmm.patiently(tpm2.startup())[0][6:10] == struct.pack(">I", 0x100)
    tpm2.done(vmm.patiently(tpm2.self_test())[0], "test itself")


def test_whoever_resets_the_tpm_finds_it_measured_again(vmm: Vmm) -> None:
    before = pcrs(vmm)
    tpm2.done(vmm.patiently(tpm2.extend(4, bytes(32)))[0], "extend")
    assert pcrs(vmm) != before
    vmm.reset()
    assert pcrs(vmm) == before


def test_what_takes_long_is_answered_when_it_is_asked_again(relay: Relay, vmm: Vmm) -> None:
    asked_in_vain(relay, vmm, tpm2.create_attestation_key())
    key = tpm2.created(vmm.patiently(tpm2.create_attestation_key())[0])
    quote = tpm2.quoted(vmm.patiently(tpm2.quote(key.handle, bytes(32)))[0])
    assert quote.message
    tpm2.done(vmm.patiently(tpm2.flush(key.handle))[0], "flush")


def test_a_command_is_carried_out_once(
    relay: Relay, vmm: Vmm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is sent while another takes long, whose sender gives up: each is carried out once, in order."""
    before = pcrs(vmm)
    asked_in_vain(relay, vmm, tpm2.create_attestation_key())
    tpm2.done(vmm.patiently(tpm2.extend(4, bytes(32)))[0], "extend")
    assert pcrs(vmm)[4] == hashlib.sha256(before[4] + bytes(32)).digest()
    monkeypatch.setattr(tpm_relay, "SECONDS", SECONDS)
    for _ in range(2):  # the same twice is meant twice
        tpm2.done(vmm.transact(tpm2.extend(9, bytes(32))), "extend")
    once = hashlib.sha256(before[9] + bytes(32)).digest()
    assert pcrs(vmm)[9] == hashlib.sha256(once + bytes(32)).digest()


def test_nothing_of_the_vmms_stays_open(vmm: Vmm) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        vmm.reset()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("size", [0, 9, 4097, 0xFFFFFFFF])
def test_nonsense_ends_it(started: Started, size: int) -> None:
    relay = started()
    vmm = Vmm(relay.path)
    vmm.data.sendall(struct.pack(">HII", 0x8001, size, 0x143))
    assert vmm.data.recv(1) == b""
    assert relay.emulator.wait(SECONDS) is not None
    assert relay.failures == [f"failed: a command or an answer of a TPM has {size} bytes"]
    vmm.close()


def test_it_ends_with_the_vmm(started: Started) -> None:
    relay = started()
    vmm = Vmm(relay.path)
    vmm.close()
    relay.emulator.wait(SECONDS)
    assert relay.failures == []


@pytest.mark.parametrize("connected", [False, True])
def test_it_ends_with_the_emulator(started: Started, connected: bool) -> None:
    relay = started()
    vmm = Vmm(relay.path) if connected else None
    relay.emulator.kill()
    relay.emulator.wait()
    if vmm is not None:
        assert vmm.control.recv(1) == b""
        assert vmm.data.recv(1) == b""
        vmm.close()
    wait_for(lambda: not connects(relay.path))
    assert relay.failures == ["ended"]


def test_an_emulator_that_hangs(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the VMM waits for, it is let go in time, and the emulator is blamed."""
    monkeypatch.setattr(tpm_relay, "ANSWER_SECONDS", 0.5)
    relay = started()
    os.kill(relay.emulator.pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(OSError, match="control channel"):
        Vmm(relay.path)
    assert time.monotonic() - begun < SECONDS
    wait_for(lambda: relay.failures != [])
    assert relay.failures == ["did not answer within 0.5 s"]


def test_an_emulator_that_hangs_at_a_reset(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command of the guest's may take long, and is to be sent again until then."""
    relay = started()
    vmm = Vmm(relay.path)
    monkeypatch.setattr(tpm_relay, "ANSWER_SECONDS", 0.5)
    os.kill(relay.emulator.pid, signal.SIGSTOP)
    for _ in range(3):
        assert vmm.transact(tpm2.self_test()) == tpm2.AGAIN
    assert relay.failures == []
    with pytest.raises(OSError, match="control channel"):
        vmm.reset()
    wait_for(lambda: relay.failures != [])
    assert relay.failures == ["did not answer within 0.5 s"]
    vmm.close()


def test_a_state_that_is_damaged(started: Started, tmp_path: Path) -> None:
    (tmp_path / "tpm2-00.permall").write_bytes(bytes(1000))
    relay = started()
    with pytest.raises(OSError, match="control channel"):
        Vmm(relay.path)
    wait_for(lambda: relay.failures != [])
    assert relay.failures == ["cannot be switched on (result 00000101)"]


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def test_what_cannot_be_measured_is_not_booted(started: Started) -> None:
    def measure() -> tpm_relay.Events:
        raise FileNotFoundError(2, "No such file or directory", "/nowhere/kernel")

    relay = started(measure)
    wait_for(lambda: not connects(relay.path))
    assert relay.failures == ["failed: /nowhere/kernel: No such file or directory"]
