"""`sealrun check`: what this host can boot, piece by piece, with the remedy for what is missing.

Nothing is started. Each finding is what `create` would say, since it is asked of the same functions.
The exit status is 0 where a container that asks for nothing special would boot, else 1.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from sealrun_vmm import assets, kvm
from sealrun_vmm.driver import DriverName
from sealrun_vmm.errors import HostUnfit, VmmError
from sealrun_vmm.spec import NO_SCRATCH, Tee
from sealrun_vmm.tee import choice, platform
from sealrun_vmm.tee.platform import Platform

from sealrun_runtime import config, installation, machine, scratch
from sealrun_runtime.arguments import Invocation, parse
from sealrun_runtime.errors import ConfigError, UsageError, describe, one_line
from sealrun_runtime.machine import Tenant
from sealrun_runtime.settings import Config

USAGE = "check [--format text|json]"

OPTIONS: Final = {"format": "format=", "f": "format="}
_MARKS: Final = {True: "ok", False: "no"}


class Finding(NamedTuple):
    """subject: what was looked at. good: whether it can be used. text: what was found. remedy: what to
    do about it; empty where it is good."""

    subject: str
    good: bool
    text: str
    remedy: str = ""


def run(_invocation: Invocation, arguments: list[str]) -> int:
    """Print the findings; 1 where nothing can boot."""
    parsed = parse(arguments, OPTIONS)
    if parsed.operands:
        raise UsageError(f"check: unexpected operand {parsed.operands[0]}")
    form = parsed.value("format", "text")
    if form not in ("text", "json"):
        raise UsageError(f"invalid format {form}: it is text or json")
    findings = list(_findings())
    if form == "json":
        sys.stdout.write(json.dumps([finding._asdict() for finding in findings], indent=1) + "\n")
    else:
        sys.stdout.write("".join(f"{_line(finding)}\n" for finding in findings))
    return 0 if findings[-1].good else 1


def _line(finding: Finding) -> str:
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return one_line(f"{_MARKS[finding.good]}  {finding.subject}: {finding.text}{remedy}")


def _findings() -> Iterator[Finding]:
    """The last one says whether a container would boot."""
    try:
        settings = config.build(config.resolve(config.files(), {}))
    except ConfigError as error:
        yield Finding("settings", good=False, text=describe(error), remedy="correct the file")
        return
    yield Finding("settings", good=True, text=f"tee {settings.tee}, driver {settings.vm.driver}")
    image = settings.guest.image or installation.guest_image()
    here = platform.probe()
    yield _attempt("guest image", partial(_guest_image, image))
    yield _attempt("scratch disk", partial(_scratch, settings))
    yield _attempt("KVM", _kvm)
    for tee in Tee:
        if tee is not Tee.NONE:
            yield _attempt(f"{tee}: this machine", partial(_has, tee, settings, here))
        for driver in DriverName:
            yield _attempt(f"{tee}: {driver}", partial(_starts, tee, driver, settings, image))
    yield _attempt("a container", partial(_boots, settings, image, here))


def _attempt(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, good=True, text=look())
    except VmmError as error:
        return Finding(subject, good=False, text=str(error), remedy=error.remedy)


def _guest_image(directory: str) -> str:
    return f"{directory}, kernel {assets.locate(directory).kernel_version}"


def _scratch(settings: Config) -> str:
    file = scratch.make(settings.vm)
    if file == NO_SCRATCH:
        return "none, all is in memory"
    os.close(file)
    return f"{settings.vm.scratch} MiB in {settings.vm.scratch_directory}"


def _kvm() -> str:
    obstacle = kvm.obstacle()
    if obstacle is not None:
        remedy = kvm.JOIN if kvm.denied() else "switch virtualization on in the machine's setup"
        remedy += "; without it VMs are emulated"
        raise HostUnfit(f"cannot use KVM: {obstacle}", remedy=remedy)
    return "usable"


def _has(tee: Tee, settings: Config, here: Platform) -> str:
    choice.load(tee).require(here, machine.options(settings, Tenant()))
    return "has it"


def _starts(tee: Tee, driver: DriverName, settings: Config, image: str) -> str:
    """Whether the VMM can start it, whatever the machine has. Raises VmmError."""
    _, spec = machine.spec_without_looking(
        settings, image, Tenant(), tee=tee, driver=driver, accelerator=None
    )
    machine.load(driver, settings.vm).check(spec)
    return f"starts it with {spec.accelerator}"


def _boots(settings: Config, image: str, here: Platform) -> str:
    """Raises VmmError where it does not."""
    _scratch(settings)
    plan = machine.plan("check", settings, image, Tenant(), here)
    plan.driver.check(plan.spec)
    return f"boots by {plan.name} with {plan.spec.accelerator}, tee {plan.spec.tee}"
