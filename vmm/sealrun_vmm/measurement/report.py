"""What a TEE will say of a VmSpec: values, what went into them, and what was left out, for a person, for
Trustee and for our broker.

Names of reference values: those of Trustee's default policies (kbs-protocol, 5.2); for TPMs tpm_pcrNN.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sealrun_vmm.driver import DriverName
from sealrun_vmm.errors import CannotMeasure
from sealrun_vmm.measurement import igvm, kernel_hashes, pcr, snp, tdx
from sealrun_vmm.measurement.ovmf import Ovmf
from sealrun_vmm.spec import Tee, VmSpec
from sealrun_vmm.tee.snp import POLICY

_OF_THE_FIRMWARE: Final = (
    "PCR 0: the firmware as it has set itself up in memory",
    "PCR 1: the firmware's list of boot options",
)
_SMT_BIT, _SINGLE_SOCKET_BIT = 1 << 16, 1 << 20

Scalar = str | int | bool


@dataclass(frozen=True, slots=True)
class Value:
    """name: of the reference value. accepted: what it may be, usually one thing. what: one line."""

    name: str
    accepted: tuple[Scalar, ...]
    what: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """values: what is expected. inputs: what went in, name and content or digest. left_out: what a TEE
    says besides and nobody can compute beforehand, one line each."""

    tee: Tee
    values: tuple[Value, ...]
    inputs: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...] = ()


def measure(spec: VmSpec, driver: DriverName, init_data: bytes = b"") -> Measurement:
    """init_data: its digest. Raises CannotMeasure."""
    compute = _BY_TEE.get(spec.tee)
    if compute is None:
        raise CannotMeasure(
            "there is nothing to measure: the VM has no TEE", remedy="name one with --tee"
        )
    try:
        return compute(spec, driver, init_data)
    except OSError as error:
        text = f"cannot read {error.filename}: {error.strerror}"
        raise CannotMeasure(text, remedy="run install.sh") from error


def reference_values(measurement: Measurement) -> dict[str, list[Scalar]]:
    """By name, as `sealrun-broker add-reference --file` takes them."""
    return {value.name: list(value.accepted) for value in measurement.values}


def rvps_message(measurement: Measurement) -> str:
    """The body of Trustee's POST /kbs/v0/reference-value (kbs-protocol, 10)."""
    payload = json.dumps(reference_values(measurement)).encode()
    message = {"version": "0.1.0", "type": "sample", "payload": base64.b64encode(payload).decode()}
    return json.dumps(message)


def _inputs(spec: VmSpec) -> tuple[tuple[str, str], ...]:
    files = (("firmware", spec.firmware), ("kernel", spec.kernel), ("initrd", spec.initrd))
    return (
        *((name, f"{path} sha256:{_sha256(path)}") for name, path in files if path),
        ("command line", spec.cmdline),
        ("CPUs", str(spec.cpus)),
        ("memory", f"{spec.memory_mib} MiB"),
    )


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def _snp(spec: VmSpec, driver: DriverName, init_data: bytes) -> Measurement:
    hashes = kernel_hashes.hash_all(_read(spec.kernel), _read(spec.initrd), spec.cmdline)
    firmware = _read(spec.firmware)
    if driver is DriverName.QEMU:
        digest = snp.digest(Ovmf(firmware), hashes, spec.cpus, spec.cpu_model)
        how = f"OVMF's pages, the table of hashes, {spec.cpus} CPUs of the model {spec.cpu_model}"
    else:
        digest = igvm.digest(igvm.parse(firmware), hashes, spec.cpus)
        how = f"the IGVM file's pages, the table of hashes, {spec.cpus} CPUs"
    policy: tuple[tuple[str, Scalar], ...] = (
        ("snp_smt_allowed", bool(POLICY & _SMT_BIT)),
        ("snp_single_socket", bool(POLICY & _SINGLE_SOCKET_BIT)),
        ("snp_guest_abi_major", POLICY >> 8 & 0xFF),
        ("snp_guest_abi_minor", POLICY & 0xFF),
    )
    known = policy if driver is DriverName.QEMU else ()  # else the IGVM file states the policy
    return Measurement(
        Tee.SNP,
        (
            Value("snp_launch_measurement", (digest.hex(),), f"MEASUREMENT: {how}"),
            *(Value(name, (value,), "the guest's policy") for name, value in known),
        ),
        (
            *_inputs(spec),
            *_bound("HOST_DATA", spec.host_data, init_data),
        ),
        ("TCB versions and the platform's settings: the host's, not the VM's",),
    )


def _tdx(spec: VmSpec, _driver: DriverName, init_data: bytes) -> Measurement:
    found = tdx.events(spec)
    plain = tdx.plain_kernel(spec)
    first = tdx.rtmr1(found, plain)
    loaded = next(event.digest for event in found if event.what.startswith("kernel "))
    options = next(event.digest for event in found if event.what.startswith("command line"))
    return Measurement(
        Tee.TDX,
        (
            Value("mr_td", (tdx.mrtd(Ovmf(_read(spec.firmware))).hex(),), "MRTD: the firmware"),
            Value(
                "rtmr_1",
                tuple(value.value.hex() for value in first),
                "RTMR 1: " + "; ".join(value.how for value in first),
            ),
            Value("rtmr_2", (tdx.rtmr2(found).hex(),), "RTMR 2: command line and initrd"),
            Value("tdvfkernel", (loaded.hex(), plain.hex()), "the kernel in the event log"),
            Value("tdvfkernelparams", (options.hex(),), "the command line in the event log"),
        ),
        (*_inputs(spec), *_bound("MRCONFIGID", spec.host_data, init_data)),
        (
            "RTMR 0: memory ranges, ACPI tables and variables, which QEMU makes of its whole command line",
            "RTMR 3: what the agent records while it runs",
            "XFAM, TCB status: the host's, not the VM's",
        ),
    )


def _tpm(spec: VmSpec, _driver: DriverName, init_data: bytes) -> Measurement:
    found = pcr.events(spec)
    values = [
        Value(
            f"tpm_pcr{number:02}",
            (value.hex(),),
            f"PCR {number}: " + ("; ".join(e.what for e in found if e.pcr == number) or "nothing"),
        )
        for number, value in pcr.values(spec, found).items()
    ]
    if init_data:
        bound = pcr.with_init_data(init_data).hex()
        values.append(Value("tpm_pcr08", (bound,), "PCR 8: the init-data's digest"))
    return Measurement(
        Tee.TPM,
        tuple(values),
        _inputs(spec),
        (
            *(_OF_THE_FIRMWARE if spec.firmware else ()),
            "PCR 10: IMA's sum over PCRs 0 to 9",
            "PCR 13: what the agent records while it runs",
        ),
    )


def _bound(name: str, host_data: bytes, init_data: bytes) -> tuple[tuple[str, str], ...]:
    """What the launch carries beside what is measured."""
    return ((name, host_data.hex()),) if init_data else ()


_BY_TEE: Final[dict[Tee, Callable[[VmSpec, DriverName, bytes], Measurement]]] = {
    Tee.SNP: _snp,
    Tee.TDX: _tdx,
    Tee.TPM: _tpm,
}
