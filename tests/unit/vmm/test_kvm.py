"""When KVM counts as usable. A file stands in for the device where the host has none."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sealrun_vmm import kvm
from sealrun_vmm.spec import Accelerator


def test_without_a_device(tmp_path: Path) -> None:
    assert (
        kvm.obstacle(device=str(tmp_path / "kvm")) == f"{tmp_path}/kvm: No such file or directory"
    )


@pytest.fixture
def another_user() -> Iterator[Path]:
    """A device of somebody else's, in a directory that everybody may look into."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        device = Path(directory) / "kvm"
        device.touch(0o600)
        device.chmod(0)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield device
        finally:
            os.seteuid(before)


def test_a_device_of_a_group_that_the_user_is_not_in(another_user: Path) -> None:
    assert kvm.obstacle(device=str(another_user)) == f"{another_user}: Permission denied"
    assert kvm.denied(str(another_user))
    assert not kvm.denied(str(another_user.parent / "none")), "there is none to be let in to"


def test_a_device_that_may_be_opened_is_not_denied(tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    assert not kvm.denied(str(tmp_path / "kvm"))


def test_something_else_in_its_place(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    found = kvm.obstacle(device=str(device))
    assert found is not None
    assert found.startswith(f"{device} is no KVM device: ")


@pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="this host has no /dev/kvm"
)
@pytest.mark.parametrize("flag", ["vmx", "svm"])
def test_the_cpu_must_show_its_flag(tmp_path: Path, flag: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags\t\t: fpu {flag} sse\nbugs : x\n")
    assert kvm.obstacle(cpuinfo=str(cpuinfo)) is None
    cpuinfo.write_text(f"model name : {flag}\nflags\t\t: fpu {flag}x sse\nbugs : {flag}\n")
    assert kvm.obstacle(cpuinfo=str(cpuinfo)) == "the CPU shows neither vmx nor svm"


def test_the_choice_follows_the_obstacle() -> None:
    expected = Accelerator.KVM if kvm.obstacle() is None else Accelerator.TCG
    assert kvm.choose_accelerator() is expected
