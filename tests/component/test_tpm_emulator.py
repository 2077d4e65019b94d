"""What the shim does with a TPM emulator to which the VMM talks itself, as QEMU does: a real one, and
programs that fail as one could. Where a relay stands between them: test_tpm_on_simulator.py."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sealrun_runtime.settings import VmSettings
from sealrun_runtime.shim import tpm
from sealrun_runtime.shim.attendant import Attendant
from sealrun_runtime.store import Directory
from sealrun_vmm.errors import LaunchFailed
from sealrun_vmm.spec import Accelerator, Tee, VmSpec
from simulators.simulated_tpm import Tpm

pytestmark = [pytest.mark.root, pytest.mark.tpm]

SPEC = VmSpec(
    name="x",
    accelerator=Accelerator.TCG,
    cpus=1,
    memory_mib=1,
    kernel="",
    initrd="",
    cmdline="",
    tee=Tee.TPM,
    tpm="tpm.sock",
    firmware="/firmware",
)
PATIENCE = 60.0


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory, in which the shim works; everybody can enter it."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        (Path(name) / "c1").mkdir()
        monkeypatch.chdir(Path(name) / "c1")
        yield Path(name)


def serve(place: Path, program: str, use: Callable[[Attendant], object]) -> str:
    """Call `use` with the emulator of a VM, in a thread, and end it; how that is told then."""
    settings = VmSettings(swtpm=program, tpm_state=str(place / "seeds"))
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY)

    async def main() -> str:
        attendant = await tpm.serve(settings, SPEC, Directory(str(place), "c1", descriptor))
        try:
            await asyncio.to_thread(use, attendant)
        finally:
            await attendant.process.kill()
        return attendant.end()

    try:
        return asyncio.run(main())
    finally:
        os.close(descriptor)


def script(place: Path, text: str) -> str:
    """A TPM emulator that is made and says what it is like the real one, and then does `text`."""
    path = place / "swtpm"
    real = 'case "$*" in *print-capabilities*|*startup-clear*) exec swtpm "$@";; esac'
    path.write_text(f"#!/bin/sh\n{real}\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_vmm_finds_one_that_answers(place: Path) -> None:
    def use(_: Attendant) -> None:
        Tpm("tpm.sock", PATIENCE).close()

    assert serve(place, "", use).startswith("the VM's TPM emulator ended")


def test_one_that_ends_at_once(place: Path) -> None:
    program = script(place, "echo 'swtpm: no such luck' >&2; exit 1")
    with pytest.raises(LaunchFailed) as caught:
        serve(place, program, lambda _: None)
    told = "cannot boot the VM: the VM's TPM emulator ended: swtpm: no such luck"
    assert str(caught.value) == told
    assert "vm.swtpm" in caught.value.remedy


def test_one_whose_state_is_damaged(place: Path) -> None:
    (place / "seeds").mkdir()
    (place / "seeds/tpm2-00.permall").write_bytes(bytes(1000))
    with pytest.raises(
        LaunchFailed, match=r"cannot be switched on \(result 00000101\): .*TPM"
    ) as caught:
        serve(place, "", lambda _: None)
    assert "vm.tpm_state" in caught.value.remedy


def test_one_that_hangs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpm, "ANSWER_SECONDS", 5.0)
    program = script(place, "echo $$ >pid; echo 'swtpm: I wait' >&2; exec sleep 1000")
    with pytest.raises(LaunchFailed) as caught:
        serve(place, program, lambda _: None)
    told = "cannot boot the VM: the VM's TPM emulator did not answer within 5 s: swtpm: I wait"
    assert str(caught.value) == told
    pid = int((place / "c1/tpm/pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
