"""`sealrun measure`: what a TEE will say of the VM that `create` boots, computed without booting it.

The same settings, the same guest image, the same function from them to the VM; needs neither the TEE
nor a VMM, so that it can run where the image was built.
"""

import binascii
import dataclasses
import json
import sys
from typing import Any, Final

from msgspec.structs import replace
from sealrun_protocol import limits
from sealrun_vmm.driver import DriverName
from sealrun_vmm.errors import VmmError
from sealrun_vmm.measurement import report
from sealrun_vmm.measurement.report import Measurement, Value
from sealrun_vmm.spec import Accelerator, Tee, VmSpec
from sealrun_vmm.tee import tpm, tpm_state

from sealrun_runtime import config, installation, machine, named_file
from sealrun_runtime.arguments import Invocation, Parsed, parse
from sealrun_runtime.errors import HostError, InvalidRequest, UsageError, cause
from sealrun_runtime.machine import Tenant
from sealrun_runtime.settings import Config, VmSettings

USAGE = (
    "measure [--tee snp|tdx|tpm] [--driver qemu|cloud-hypervisor] [--accelerator kvm|tcg]"
    " [--cpus N] [--memory MIB] [--init-data FILE] [--attestation-key]"
    " [--format text|json|broker|trustee]"
)

OPTIONS: Final = {
    "tee": "tee=",
    "driver": "driver=",
    "accelerator": "accelerator=",
    "cpus": "cpus=",
    "memory": "memory=",
    "init-data": "init-data=",
    "attestation-key": "attestation-key",
    "format": "format=",
}
_FORMATS: Final = ("text", "json", "broker", "trustee")


def run(_invocation: Invocation, arguments: list[str]) -> int:
    """Print it. Raises HostError where it cannot be computed."""
    parsed = parse(arguments, OPTIONS)
    if parsed.operands:
        raise UsageError(f"measure: unexpected operand {parsed.operands[0]}")
    form = parsed.value("format", "text")
    if form not in _FORMATS:
        raise UsageError(f"invalid format {form}: it is {', '.join(_FORMATS)}")
    tenant = _tenant(parsed.value("init-data"))
    try:
        settings = _settings(parsed)
        driver, spec = _spec(parsed, settings, tenant)
        measurement = report.measure(spec, driver, tenant.digest)
        if parsed.flag("attestation-key"):
            measurement = _with_key(measurement, settings.vm)
    except VmmError as error:
        raise HostError(f"cannot measure: {error}", remedy=error.remedy) from error
    shown = {
        "text": _text,
        "json": _document,
        "broker": lambda *_: json.dumps(report.reference_values(measurement), indent=1),
        "trustee": lambda *_: report.rvps_message(measurement),
    }
    sys.stdout.write(shown[form](driver, spec, measurement) + "\n")
    return 0


def _settings(parsed: Parsed) -> Config:
    """Raises ConfigError, InvalidRequest."""
    annotations = {
        "io.sealrun.cpus": parsed.value("cpus"),
        "io.sealrun.memory": parsed.value("memory"),
    }
    given = {name: value for name, value in annotations.items() if value}
    try:
        settings = config.build(config.resolve(config.files(), given))
    except InvalidRequest as error:
        text = error.text.replace("annotation io.sealrun.", "--")
        raise InvalidRequest(text, remedy=error.remedy) from error
    # Who signs quotes does not matter to what they say.
    return replace(settings, vm=replace(settings.vm, quote_service=""))


def _spec(parsed: Parsed, settings: Config, tenant: Tenant) -> tuple[DriverName, VmSpec]:
    """What would be booted. Raises VmmError."""
    image = settings.guest.image or installation.guest_image()
    tee = _one_of(parsed.value("tee", settings.tee), Tee, "tee") if parsed.value("tee") else None
    driver = parsed.value("driver")
    accelerator = parsed.value("accelerator")
    return machine.spec_without_looking(
        settings,
        image,
        tenant,
        tee=tee,
        driver=_one_of(driver, DriverName, "driver") if driver else None,
        accelerator=_one_of(accelerator, Accelerator, "accelerator") if accelerator else None,
    )


def _one_of(text: str, kind: Any, what: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        names = ", ".join(member.value for member in kind)
        raise UsageError(f"invalid {what} {text}: it is one of {names}") from None


def _tenant(path: str) -> Tenant:
    """Raises InvalidRequest."""
    if not path:
        return Tenant()
    from sealrun_protocol import init_data

    try:
        parsed = init_data.parse(named_file.read(path, limits.INIT_DATA_BYTES, pipe=True))
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {cause(error)}") from error
    except init_data.InitDataInvalid as error:
        raise InvalidRequest(f"cannot use {path}: {error}") from error
    return Tenant(parsed.digest, parsed.attestation.tees)


def _with_key(measurement: Measurement, settings: VmSettings) -> Measurement:
    """And the key that signs what this host's TPMs say: unlike all else, it is this host's. Raises
    UsageError, VmmError."""
    if measurement.tee is not Tee.TPM:
        raise UsageError(
            "--attestation-key is for --tee tpm: other TEEs have a key of their maker's"
        )
    program = tpm.emulator(settings.swtpm)
    key = tpm_state.attestation_key(program, tpm_state.make(program, settings.tpm_state))
    value = Value(
        "trusted_aks",
        (binascii.b2a_base64(key, newline=False).decode(),),
        f"the attestation key of this host's TPMs ({settings.tpm_state})",
    )
    return dataclasses.replace(measurement, values=(*measurement.values, value))


def _document(driver: DriverName, spec: VmSpec, measurement: Measurement) -> str:
    document = {
        "tee": measurement.tee.value,
        "driver": driver.value,
        "accelerator": spec.accelerator.value,
        "inputs": dict(measurement.inputs),
        "values": {
            value.name: {"accepted": list(value.accepted), "what": value.what}
            for value in measurement.values
        },
        "left_out": list(measurement.left_out),
    }
    return json.dumps(document, indent=1)


def _text(driver: DriverName, spec: VmSpec, measurement: Measurement) -> str:
    lines = [f"{measurement.tee.value} by {driver.value} with {spec.accelerator.value}", ""]
    for value in measurement.values:
        lines.append(f"{value.name}")
        lines += [f"    {_word(accepted)}" for accepted in value.accepted]
        lines.append(f"    {value.what}")
    lines += ["", "from"]
    lines += [f"    {name}: {content}" for name, content in measurement.inputs]
    lines += ["", "not computed"]
    lines += [f"    {line}" for line in measurement.left_out]
    return "\n".join(lines)


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
