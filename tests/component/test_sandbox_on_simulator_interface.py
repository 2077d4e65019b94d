"""The simulator answers as the real Cloud Hypervisor does: the same cases run against that one in
tests/system/test_cloud_hypervisor.py."""

import asyncio
import subprocess
from pathlib import Path

import pytest
from fixtures import hypervisor_cases
from fixtures.recording import Recording
from sealrun_vmm.spec import Accelerator, VmSpec
from simulators import openapi

SIMULATOR = str(Path(__file__).parents[1] / "simulators/cloud_hypervisor.py")


def test_the_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATOR", "guest=none")
    for name in ("kernel", "initrd"):
        (tmp_path / name).touch()
    (tmp_path / "vmm").mkdir()
    spec = VmSpec(
        name="x",
        accelerator=Accelerator.KVM,
        cpus=1,
        memory_mib=256,
        kernel=str(tmp_path / "kernel"),
        initrd=str(tmp_path / "initrd"),
        cmdline="",
        landlock=False,
    )
    recording = Recording(SIMULATOR, tmp_path / "recording")
    asyncio.run(hypervisor_cases.run(recording.binary, tmp_path / "vmm", spec))
    assert recording.names() >= hypervisor_cases.CALLS
    if openapi.SPECIFICATION is not None:
        recording.judge(wrong_requests=True)
        with pytest.raises(AssertionError, match=r"vm\.boot takes no body"):
            recording.judge()


def test_landlock_alone_is_refused_on_the_command_line() -> None:
    words = ["--api-socket", "fd=0", "--event-monitor", "fd=1", "--landlock"]
    done = subprocess.run([SIMULATOR, *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
