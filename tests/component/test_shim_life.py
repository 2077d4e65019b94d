"""The life of a sandbox as CLI, engine and guest see it: each way it begins, goes on and ends."""

import os
import signal
import time
from pathlib import Path

import pytest
from fixtures.shim import Shim, alive, drain, running, terminate, wait
from sealrun_protocol import messages
from sealrun_protocol.errors import ERRORS, ErrorCode, Phase
from sealrun_runtime.oci_config import Mount
from simulators.guest import Guest


def created(shim: Shim, guest: Guest) -> messages.CreateContainer:
    request = shim.create()
    message = guest.create()
    request.ok()
    return message


def started(shim: Shim, guest: Guest) -> messages.CreateContainer:
    message = created(shim, guest)
    request = shim.start()
    guest.start()
    request.ok()
    return message


def test_a_happy_life(shim: Shim, guest: Guest) -> None:
    request = shim.create()
    configure = guest.boot()
    assert configure.hostname == "host-name"
    assert configure.init_data == b""
    assert abs(configure.time_ns - time.time_ns()) < 60e9
    create = guest.expect(messages.CreateContainer)
    assert (create.container, create.image) == ("c1", "registry.test/app:1")
    assert create.config == b'{"ociVersion":"1.0.2"}'
    assert create.files == {}
    assert len({create.stdin, create.stdout, create.stderr}) == 3
    assert all(stream and stream % 2 == 0 for stream in (create.stdin, create.stdout))
    progress = {"container": "c1", "phase": Phase.PULL}
    guest.send(messages.Progress(text="manifest", **progress))
    guest.send(messages.Progress(text="a", done_bytes=3 << 20, total_bytes=9 << 20, **progress))
    assert shim.state()["status"] == "creating"
    guest.send(messages.Done(id=create.id, image_digest="sha256:" + 64 * "b"))
    request.ok()
    told = request.answer.progress
    assert told[-2:] == [("pull", "manifest"), ("pull", "a (3.0 of 9.0 MiB)")]
    state = shim.state()
    assert list(state) == ["ociVersion", "id", "status", "pid", "bundle", "annotations"]
    assert state["status"] == "created"
    assert shim.stdio is not None
    assert state["pid"] == shim.stdio.stand_in.pid
    assert shim.annotation("image.digest") == "sha256:" + 64 * "b"
    assert shim.annotation("tee") == "none"
    assert shim.annotation("vmm") == "qemu/tcg"
    start = shim.start()
    guest.start()
    start.ok()
    assert shim.state()["status"] == "running"
    guest.send(messages.StreamData(stream=create.stdout, data=b"out\n"))
    guest.send(messages.StreamEnd(stream=create.stdout))
    guest.exit("c1", 42)
    assert drain(shim.stdio.stdout) == b"out\n"
    assert drain(shim.stdio.stderr) == b""
    assert shim.code() == 42
    state = shim.state()
    assert (state["status"], state["pid"]) == ("stopped", 0)
    assert shim.annotation("exit-code") == "42"
    assert shim.annotation("exit-reason") == ""
    assert shim.gone() == 0
    assert "memory 4711 KiB available" in shim.log()


def test_state_is_final_when_the_stand_in_ends(shim: Shim, guest: Guest) -> None:
    started(shim, guest)
    guest.exit("c1", 0)
    assert shim.code() == 0
    assert shim.state()["status"] == "stopped"


@pytest.mark.parametrize("code", [0, 1, 127, 128 + 9, 255])
def test_exit_codes(shim: Shim, guest: Guest, code: int) -> None:
    started(shim, guest)
    guest.exit("c1", code)
    assert shim.code() == code


def test_files_that_engines_bind_mount_travel_with_create(tmp_path: Path) -> None:
    (tmp_path / "resolv").write_bytes(b"nameserver 192.0.2.1\n")
    source = str(tmp_path / "resolv")
    mounts = (Mount(destination="/etc/resolv.conf", type="bind", source=source),)
    with running(tmp_path / "root", mounts=mounts) as shim, shim.guest() as guest:
        (file,) = created(shim, guest).files.values()
        assert file.content == b"nameserver 192.0.2.1\n"


def test_a_file_that_is_too_large_fails_create(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(bytes(600 << 10))
    mounts = (Mount(destination="/etc/hosts", options=("rbind",), source=str(tmp_path / "hosts")),)
    with running(tmp_path / "root", mounts=mounts) as shim, shim.guest() as guest:
        request = shim.create()
        guest.boot()
        assert "is larger than" in request.error().text
        shim.gone()


@pytest.mark.parametrize("code", list(ErrorCode))
def test_a_failed_create_names_phase_and_remedy(shim: Shim, guest: Guest, code: ErrorCode) -> None:
    request = shim.create()
    guest.boot()
    create = guest.expect(messages.CreateContainer)
    guest.send(messages.Failed(id=create.id, phase=Phase.PULL, code=code, text="layer\n\x1b[1m 7"))
    error = request.error()
    assert error.kind == code.value
    assert error.remedy == ERRORS[code].remedy
    if code in (ErrorCode.PROGRAM_NOT_FOUND, ErrorCode.PROGRAM_NOT_EXECUTABLE):
        # No phase before it; the command line may add the words that engines look for.
        assert error.text.startswith("layer  [1m 7")
    else:
        assert error.text == f"pull: {ERRORS[code].summary}: layer  [1m 7"
    assert shim.code() == 137
    assert shim.gone() == 0


def test_a_missing_program_is_told_in_the_guests_words(shim: Shim, guest: Guest) -> None:
    words = "executable file `nope` not found in $PATH: No such file or directory"
    request = shim.create()
    guest.boot()
    create = guest.expect(messages.CreateContainer)
    code = ErrorCode.PROGRAM_NOT_FOUND
    guest.send(messages.Failed(id=create.id, phase=Phase.START, code=code, text=words))
    assert request.error().text == words


def test_a_failed_start_leaves_the_container_created(shim: Shim, guest: Guest) -> None:
    created(shim, guest)
    request = shim.start()
    start = guest.expect(messages.StartContainer)
    code = ErrorCode.RUNTIME_FAILED
    guest.send(messages.Failed(id=start.id, phase=Phase.START, code=code, text="crun"))
    assert request.error().kind == "runtime-failed"
    assert shim.state()["status"] == "created"
    shim.delete(force=True).ok()
    assert shim.code() == 137
    shim.gone()


def test_a_program_that_ends_before_its_start_is_answered(shim: Shim, guest: Guest) -> None:
    created(shim, guest)
    request = shim.start()
    guest.expect(messages.StartContainer)
    guest.exit("c1", 4)
    request.ok()
    assert shim.code() == 4
    assert shim.annotation("exit-reason") == ""


def test_last_words_of_an_agent(shim: Shim, guest: Guest) -> None:
    request = shim.create()
    code = ErrorCode.BOOT_FAILED
    guest.send(messages.AgentFailed(phase=Phase.BOOT, code=code, text="no /proc"))
    error = request.error()
    assert error.kind == "boot-failed"
    assert error.text == "boot: the guest could not set itself up: no /proc"
    shim.gone()


def test_last_words_count_although_the_vm_ends(shim: Shim, guest: Guest) -> None:
    request = shim.create()
    vmm = shim.vmm
    code = ErrorCode.BOOT_FAILED
    guest.send(messages.AgentFailed(phase=Phase.BOOT, code=code, text="no /proc"))
    terminate(vmm)
    assert request.error().kind == "boot-failed"


def test_a_silent_guest_is_a_boot_error_with_its_consoles_last_words(tmp_path: Path) -> None:
    with running(tmp_path, boot_timeout=1) as shim:
        (shim.path / "console.log").write_bytes(
            b"[ 0.1] all is well\r\nagent: \x1b[31mlost\r\n\r\n"
        )
        request = shim.create()
        error = request.error()
        assert error.kind == "boot-failed"
        assert error.text.startswith("boot: the guest did not say a word within 1 s")
        assert error.text.endswith("its console ends with: agent: lost")
        assert error.remedy
        shim.gone()


def test_another_version_of_the_protocol(shim: Shim, guest: Guest) -> None:
    request = shim.create()
    guest.hello(version=99)
    error = request.error()
    assert error.kind == "protocol-violation"
    assert "99" in error.text
    shim.gone()


def test_a_host_that_cannot_boot_the_vm_says_so_when_asked(tmp_path: Path) -> None:
    with running(tmp_path, memory=4096) as shim:
        time.sleep(0.5)  # it failed long before anybody asks
        error = shim.create().error()
        assert (error.kind, error.text, error.remedy) == (
            "host-unfit",
            "cannot find qemu",
            "install it",
        )
        assert shim.gone() == 0


def test_a_vm_that_dies_during_create(shim: Shim, guest: Guest) -> None:
    request = shim.create()
    guest.boot()
    guest.expect(messages.CreateContainer)
    terminate(shim.vmm)
    error = request.error()
    assert error.kind == "vmm-failed"
    assert "killed by signal 9" in error.text
    assert shim.code() == 137
    assert shim.gone() == 0


@pytest.mark.parametrize("running_already", [False, True])
def test_a_vm_that_dies_later(shim: Shim, guest: Guest, running_already: bool) -> None:
    (started if running_already else created)(shim, guest)
    terminate(shim.vmm)
    assert shim.code() == 137
    assert shim.state()["status"] == "stopped"
    assert "killed by signal 9" in shim.annotation("exit-reason")
    assert shim.gone() == 0


def test_a_vm_that_dies_while_a_request_is_under_way(shim: Shim, guest: Guest) -> None:
    created(shim, guest)
    request = shim.start()
    guest.expect(messages.StartContainer)
    terminate(shim.vmm)
    assert request.error().kind == "vmm-failed"


def test_output_before_the_vms_death_arrives(shim: Shim, guest: Guest) -> None:
    message = started(shim, guest)
    guest.send(messages.StreamData(stream=message.stdout, data=b"last"))
    assert shim.stdio is not None
    assert os.read(shim.stdio.stdout, 10) == b"last"
    terminate(shim.vmm)
    assert drain(shim.stdio.stdout) == b""
    assert shim.code() == 137


def test_a_stand_in_that_is_killed_takes_the_container_along(shim: Shim, guest: Guest) -> None:
    started(shim, guest)
    vmm = shim.vmm
    assert shim.stdio is not None
    terminate(shim.stdio.stand_in.pid)
    wait(lambda: not alive(vmm))
    assert shim.gone() == 0
    assert "stand-in" in shim.annotation("exit-reason")


@pytest.mark.parametrize("moment", ["unheard", "booting", "booted"])
def test_a_create_whose_caller_goes_away_is_called_off(shim: Shim, moment: str) -> None:
    with shim.guest() as guest:
        vmm = shim.vmm
        if moment == "unheard":
            os.kill(shim.process.pid, signal.SIGSTOP)
        request = shim.create()
        if moment == "booted":
            guest.boot()
            guest.expect(messages.CreateContainer)
        elif moment == "booting":
            time.sleep(0.3)
        request.connection._socket.shutdown(2)
        os.kill(shim.process.pid, signal.SIGCONT)
        wait(lambda: not alive(vmm))
        assert shim.gone() == 0
        assert shim.code() == 137


def test_a_killed_shim_takes_its_vm_along(shim: Shim, guest: Guest) -> None:
    started(shim, guest)
    vmm = shim.vmm
    shim.process.kill()
    assert shim.code() == 137  # by the stand-in's own decision
    wait(lambda: not alive(vmm))


@pytest.mark.parametrize("stage", ["boot", "created", "running"])
def test_a_shim_that_is_told_to_end_does_so_in_order(shim: Shim, guest: Guest, stage: str) -> None:
    vmm = shim.vmm
    if stage != "boot":
        (started if stage == "running" else created)(shim, guest)
    wait(lambda: "launched" in shim.log())
    shim.process.send_signal(signal.SIGTERM)
    assert shim.gone() == 0
    assert not alive(vmm)
    if stage != "boot":
        assert shim.code() == 137
        assert shim.state()["status"] == "stopped"
        assert "told to end" in shim.annotation("exit-reason")


def test_kill_sends_one_message(shim: Shim, guest: Guest) -> None:
    started(shim, guest)
    request = shim.kill(15, everything=True)
    message = guest.expect(messages.SignalContainer)
    assert (message.container, message.signal, message.all) == ("c1", 15, True)
    guest.send(messages.Done(id=message.id))
    request.ok()
    assert shim.state()["status"] == "running"


def test_kill_that_is_not_answered_takes_the_vm_away(shim: Shim, guest: Guest) -> None:
    started(shim, guest)
    vmm = shim.vmm
    begin = time.monotonic()
    request = shim.kill(9)
    guest.expect(messages.SignalContainer)
    request.ok()
    assert shim.code() == 137
    assert time.monotonic() - begin < 15  # it is given 5
    wait(lambda: not alive(vmm))


def test_kill_that_is_answered_and_not_carried_out_takes_the_vm_away(
    shim: Shim, guest: Guest
) -> None:
    started(shim, guest)
    request = shim.kill(9)
    guest.send(messages.Done(id=guest.expect(messages.SignalContainer).id))
    request.ok()
    assert shim.state()["status"] == "running"
    assert shim.code() == 137
    assert "did not carry it out" in shim.annotation("exit-reason")


def test_kill_of_what_the_guest_says_has_ended(shim: Shim, guest: Guest) -> None:
    started(shim, guest)
    request = shim.kill(15)
    message = guest.expect(messages.SignalContainer)
    code = ErrorCode.WRONG_STATE
    guest.send(messages.Failed(id=message.id, phase=Phase.RUN, code=code, text=""))
    assert request.error().kind == "wrong-state"


def test_signal_0_asks_nobody(shim: Shim, guest: Guest) -> None:
    started(shim, guest)
    shim.kill(0).ok()
    assert guest.receive(0.2) is None


def test_requests_in_a_wrong_state(shim: Shim, guest: Guest) -> None:
    for request in (shim.start(), shim.kill(9), shim.delete()):
        assert request.error().kind == "wrong-state"
    created(shim, guest)
    assert shim.create().error().kind == "wrong-state"
    assert shim.stdio is not None
    assert shim.delete().error().kind == "wrong-state"
    assert shim.ask("start", "other").error().kind == "not-found"
    start = shim.start()
    guest.start()
    start.ok()
    assert shim.start().error().kind == "wrong-state"


@pytest.mark.parametrize(
    "fields",
    [("what",), ("create", "c1"), ("kill", "c1", "x", "0"), ("start",), ("delete", "c1", "2")],
)
def test_what_is_no_request(shim: Shim, guest: Guest, fields: tuple[str, ...]) -> None:
    assert shim.ask(*fields).error().kind == "internal"
    created(shim, guest)


@pytest.mark.parametrize("stage", ["boot", "creating", "created", "running"])
def test_delete_by_force_in_each_state(shim: Shim, guest: Guest, stage: str) -> None:
    vmm = shim.vmm
    request = None
    if stage == "creating":
        request = shim.create()
        guest.boot()
        guest.expect(messages.CreateContainer)
    elif stage != "boot":
        (started if stage == "running" else created)(shim, guest)
    shim.delete(force=True).ok()
    assert not alive(vmm)
    assert shim.gone() == 0
    if request is not None:
        assert request.error().text == "deleted by force"
    if shim.stdio is not None:
        assert shim.code() == 137


def test_delete_while_the_vm_goes_is_ok(shim: Shim, guest: Guest) -> None:
    started(shim, guest)
    guest.exit("c1", 3)
    assert shim.code() == 3
    try:
        shim.delete().ok()
    except (ConnectionRefusedError, AssertionError):
        shim.gone()  # it was faster


@pytest.mark.parametrize("tee", ["snp", "tdx", "tpm"])
def test_a_vmm_that_starts_an_unprotected_vm_is_found_out(tmp_path: Path, tee: str) -> None:
    with running(tmp_path, annotations={"test.tee": tee}) as shim, shim.guest() as guest:
        request = shim.create()
        guest.hello(tee="none")
        error = request.error()
        assert error.kind == ErrorCode.TEE_UNAVAILABLE
        assert error.text == f"boot: the VM was to have {tee}, and its guest finds none"
    with running(tmp_path / "other", annotations={"test.tee": tee}) as shim, shim.guest() as guest:
        shim.create()
        guest.hello(tee=tee)
        guest.expect(messages.ConfigureSandbox)
