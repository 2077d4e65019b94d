"""What a machine must show for SEV-SNP and for TDX: each missing piece is named, with its remedy."""

from pathlib import Path

import pytest
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.tee import platform, snp, tdx
from sealrun_vmm.tee.launch import Options
from sealrun_vmm.tee.platform import SNP_VM, TDX_VM, Platform


def machine(root: Path, *, flags: str, kernel: str, **parameters: str) -> Platform:
    """What is probed of a machine whose files are below `root`."""
    files = {
        "proc/cpuinfo": f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t\t: none\n",
        "proc/sys/kernel/osrelease": f"{kernel}-amd64\n",
    }
    for name, value in parameters.items():
        module, _, parameter = name.partition("__")
        files[f"sys/module/{module}/parameters/{parameter}"] = f"{value}\n"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return platform.probe(str(root))


def complete(found: Platform, vm_type: int) -> Platform:
    """The same with what only a real KVM can say."""
    values = {name: getattr(found, name) for name in Platform.__dataclass_fields__}
    return Platform(**values | {"kvm": "", "vm_types": 1 << vm_type})


def refusal(tee: object, found: Platform) -> HostUnfit:
    with pytest.raises(HostUnfit) as caught:
        tee.require(found, Options())  # type: ignore[attr-defined]
    assert caught.value.remedy
    return caught.value


def test_snp_piece_by_piece(tmp_path: Path) -> None:
    def found(**changes: str) -> Platform:
        shown = {"flags": "svm sev_snp", "kernel": "6.11.0", "kvm_amd__sev_snp": "Y"} | changes
        return machine(tmp_path, **shown)

    assert "does not show sev_snp" in str(refusal(snp, found(flags="svm")))
    assert "Linux 6.1 is too old" in str(refusal(snp, found(kernel="6.1.0-56")))
    assert "/dev/kvm" in str(refusal(snp, found()))
    off = complete(found(kvm_amd__sev_snp="N"), SNP_VM)
    assert "without sev_snp" in str(refusal(snp, off))
    assert "no /dev/sev" in str(refusal(snp, complete(found(), SNP_VM)))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sev").touch()
    assert "VMs of that type" in str(refusal(snp, complete(found(), TDX_VM)))
    snp.require(complete(found(), SNP_VM), Options())


def test_tdx_piece_by_piece(tmp_path: Path) -> None:
    def found(**changes: str) -> Platform:
        shown = {"flags": "vmx tdx_host_platform", "kernel": "6.16.1", "kvm_intel__tdx": "Y"}
        return machine(tmp_path, **shown | changes)

    assert "tdx_host_platform" in str(refusal(tdx, found(flags="vmx")))
    assert "Linux 6.12 is too old" in str(refusal(tdx, found(kernel="6.12.95")))
    assert "/dev/kvm" in str(refusal(tdx, found()))
    assert "without tdx" in str(refusal(tdx, complete(found(kvm_intel__tdx="N"), TDX_VM)))
    assert "VMs of that type" in str(refusal(tdx, complete(found(), SNP_VM)))
    tdx.require(complete(found(), TDX_VM), Options())


def test_a_machine_that_shows_nothing(tmp_path: Path) -> None:
    found = platform.probe(str(tmp_path))
    assert found.cpu_flags == frozenset()
    assert (found.kernel, found.vm_types, found.parameters) == ((0, 0), 0, {})
    assert found.kvm


def test_this_machine() -> None:
    found = platform.probe()
    assert found.kernel >= (5, 0)
    assert "fpu" in found.cpu_flags
