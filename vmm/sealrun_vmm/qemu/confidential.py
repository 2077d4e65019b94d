"""The part of QEMU's arguments that a TEE needs: pure, and compared with golden files.

SNP: qemu docs, system/i386/amd-memory-encryption. TDX: system/i386/tdx. Firmware goes in as -bios,
which is one file of code and empty variables.
"""

import base64
import json
import os
from typing import Final

from sealrun_vmm.errors import SpecRefused
from sealrun_vmm.spec import Accelerator, Tee, VmSpec
from sealrun_vmm.tee import snp, tdx

_SNP_C_BIT: Final = 51  # of EPYC 7003 and newer
_SNP_LOST_ADDRESS_BITS: Final = 1


def check(spec: VmSpec) -> None:
    """Raise SpecRefused for what a VM with its TEE cannot have."""
    if spec.tee is Tee.TPM and not spec.tpm:
        raise SpecRefused("cannot start a VM with tpm without a TPM")
    if spec.tee is not Tee.NONE and not spec.firmware:
        raise SpecRefused(f"cannot start a VM with {spec.tee} without firmware")
    if spec.tee not in (Tee.SNP, Tee.TDX):
        return
    if spec.accelerator is not Accelerator.KVM:
        raise SpecRefused(
            f"cannot emulate a VM with {spec.tee}: only KVM starts one",
            remedy="set vm.accelerator to auto or kvm in sealrun.toml",
        )
    if spec.shares:
        raise SpecRefused(f"a VM with {spec.tee} cannot share directories with the host")
    length = snp.HOST_DATA_BYTES if spec.tee is Tee.SNP else tdx.HOST_DATA_BYTES
    if len(spec.host_data) != length:
        raise SpecRefused(f"the host data of a VM with {spec.tee} has {length} bytes")


def machine_options(spec: VmSpec) -> str:
    """What the TEE adds to -machine."""
    match spec.tee:
        case Tee.SNP:
            return ",confidential-guest-support=tee"
        case Tee.TDX:
            return ",kernel-irqchip=split,confidential-guest-support=tee"
        case _:
            return ""


def arguments(spec: VmSpec) -> list[str]:
    """Firmware, the TEE's object, the TPM."""
    command = []
    if spec.firmware:
        command += ["-bios", spec.firmware]
    if spec.tee is Tee.SNP:
        command += ["-object", json.dumps(_snp(spec))]
    if spec.tee is Tee.TDX:
        command += ["-object", json.dumps(_tdx(spec))]
    if spec.tpm:
        path = (spec.tpm if os.path.isabs(spec.tpm) else f"./{spec.tpm}").replace(",", ",,")
        command += ["-chardev", f"socket,id=tpm,path={path}"]
        command += ["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]
    return command


def _snp(spec: VmSpec) -> dict[str, object]:
    return {
        "qom-type": "sev-snp-guest",
        "id": "tee",
        "cbitpos": _SNP_C_BIT,
        "reduced-phys-bits": _SNP_LOST_ADDRESS_BITS,
        "policy": snp.POLICY,
        # Hashes of kernel, initrd and command line become part of the measurement; OVMF compares.
        "kernel-hashes": True,
        "host-data": base64.b64encode(spec.host_data).decode(),
    }


def _tdx(spec: VmSpec) -> dict[str, object]:
    guest: dict[str, object] = {
        "qom-type": "tdx-guest",
        "id": "tee",
        "mrconfigid": base64.b64encode(spec.host_data).decode(),
    }
    if spec.quote_service:
        guest["quote-generation-socket"] = {"type": "unix", "path": spec.quote_service}
    return guest
