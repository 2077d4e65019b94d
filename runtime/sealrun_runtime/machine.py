"""From the operator's settings to the VM: which TEE, which driver, and the VmSpec that it boots.

`vm_spec` is the one pure function of the design's "Config + ContainerSpec -> VmSpec"; what is booted
and what is measured are renderings of its value. `plan` looks at this machine and calls it. What one
sandbox adds to the VM (shares, networks) is added by the shim (shim/machine.py).
"""

import re
from typing import Final, NamedTuple

from sealrun_vmm import assets, cmdline, driver, kvm
from sealrun_vmm.assets import GuestImage
from sealrun_vmm.driver import Driver, DriverName
from sealrun_vmm.errors import HostUnfit, SpecRefused, VmmError
from sealrun_vmm.spec import Accelerator, Tee, VmSpec
from sealrun_vmm.tee import choice, platform
from sealrun_vmm.tee.launch import Launch, Options
from sealrun_vmm.tee.platform import Platform

from sealrun_runtime.settings import Config, VmSettings

ENCRYPTED: Final = (Tee.SNP, Tee.TDX)
"""The TEEs that are the CPU's, so that nothing but KVM can use them."""
OLDEST_GUEST_KERNEL: Final = (6, 12)
"""The first of Debian's kernels that has the drivers of SNP and TDX guests."""


class Tenant(NamedTuple):
    """What the init-data says about the VM. digest: of its text, empty where there is none. accepted:
    names of the TEEs that it may be used with; empty: any, or none."""

    digest: bytes = b""
    accepted: tuple[str, ...] = ()


class Plan(NamedTuple):
    """Which VMM boots what."""

    name: DriverName
    driver: Driver
    spec: VmSpec


def plan(
    name: str, config: Config, guest_image: str, tenant: Tenant, here: Platform | None = None
) -> Plan:
    """What this machine boots for a sandbox called `name`. here: what it offers; None: look.

    Raises VmmError."""
    asked = options(config, tenant)
    here = here or platform.probe()
    tee = choice.choose(config.tee, tenant.accepted, here, asked)
    accelerator = choose_accelerator(config.vm, tee)
    image = assets.locate(guest_image)
    _require_driver_in_guest(image, tee)
    failures: list[VmmError] = []
    names = candidates(config.vm, tee, accelerator)
    for candidate in names:
        try:
            launch = choice.load(tee).launch(candidate, asked)
            spec = vm_spec(name, config, image, accelerator, launch)
            loaded = load(candidate, config.vm)
            if candidate is not names[-1] or failures:  # the launch checks it once more
                loaded.check(spec)
        except VmmError as error:
            failures.append(error)
        else:
            return Plan(candidate, loaded, spec)
    raise _none_of(names, failures, tee)


def _require_driver_in_guest(image: GuestImage, tee: Tee) -> None:
    """Raise HostUnfit where the guest could not get evidence."""
    numbers = [int(number) for number in re.findall(r"\d+", image.kernel_version)[:2]]
    if tee in ENCRYPTED and tuple(numbers) < OLDEST_GUEST_KERNEL:
        raise HostUnfit(
            f"cannot attest a VM with {tee}: the guest image's kernel {image.kernel_version} has no "
            "driver for it",
            remedy="build one with guest-agent/image/build --kernel-suite backports, and set "
            "guest.image in sealrun.toml",
        )


def _none_of(names: list[DriverName], failures: list[VmmError], tee: Tee) -> VmmError:
    """Why no VMM will do; without a TEE the last one's reason, which is the one that runs anywhere."""
    if tee is Tee.NONE or len(failures) == 1:
        return failures[-1]
    texts = "; ".join(f"{name}: {error}" for name, error in zip(names, failures, strict=True))
    return HostUnfit(f"no VMM can start a VM with {tee}: {texts}", remedy=failures[-1].remedy)


def spec_without_looking(
    config: Config,
    guest_image: str,
    tenant: Tenant,
    *,
    tee: Tee | None,
    driver: DriverName | None,
    accelerator: Accelerator | None,
) -> tuple[DriverName, VmSpec]:
    """What a machine that has the TEE would boot by these settings.

    tee, driver, accelerator: those of the settings where None; for `auto` of this machine.
    Raises VmmError."""
    asked = options(config, tenant)
    if tee is None:
        tee = choice.choose(config.tee, tenant.accepted, platform.probe(), asked)
    elif tenant.accepted and tee.value not in tenant.accepted:
        raise SpecRefused(f"the init-data accepts {' or '.join(tenant.accepted)} only")
    accelerator = accelerator or choose_accelerator(config.vm, tee)
    image = assets.locate(guest_image)
    failures: list[VmmError] = []
    names = [driver] if driver else candidates(config.vm, tee, accelerator)
    for name in names:
        try:
            launch = choice.load(tee).launch(name, asked)
        except VmmError as error:
            failures.append(error)
        else:
            return name, vm_spec("measured", config, image, accelerator, launch)
    raise _none_of(names, failures, tee)


def options(config: Config, tenant: Tenant) -> Options:
    """What the TEE's modules are told."""
    return Options(
        firmware=config.vm.firmware,
        swtpm=config.vm.swtpm,
        tpm_state=config.vm.tpm_state,
        quote_service=config.vm.quote_service,
        digest=tenant.digest,
    )


def choose_accelerator(settings: VmSettings, tee: Tee) -> Accelerator:
    """Who executes the guest."""
    if settings.accelerator != "auto":
        return Accelerator(settings.accelerator)
    if settings.driver == "cloud-hypervisor" or tee in ENCRYPTED:
        return Accelerator.KVM  # there is no other, and whoever needs it says what KVM lacks
    return kvm.choose_accelerator()


def candidates(settings: VmSettings, tee: Tee, accelerator: Accelerator) -> list[DriverName]:
    """The VMMs to try, in order: the one that is asked for, else those that the TEE prefers."""
    if settings.driver != "auto":
        return [DriverName(settings.driver)]
    emulated = accelerator is not Accelerator.KVM
    names = choice.load(tee).DRIVERS
    return [n for n in names if not (emulated and n is DriverName.CLOUD_HYPERVISOR)]


def load(name: DriverName, settings: VmSettings) -> Driver:
    """The driver with the VMM's binary that the operator names."""
    binary = settings.qemu if name is DriverName.QEMU else settings.cloud_hypervisor
    return driver.load(name, binary)


def vm_spec(
    name: str, config: Config, image: GuestImage, accelerator: Accelerator, launch: Launch
) -> VmSpec:
    """The VM of a sandbox. Pure: the same arguments, the same VM."""
    return VmSpec(
        name=name,
        accelerator=accelerator,
        cpus=config.vm.cpus,
        memory_mib=config.vm.memory,
        kernel=image.bzimage if launch.firmware else image.kernel,
        initrd=image.initrd,
        cmdline=cmdline.base(accelerator),
        landlock=not config.vm.insecure_no_landlock,
        tee=launch.tee,
        firmware=launch.firmware,
        tpm=launch.tpm,
        cpu_model=launch.cpu_model,
        host_data=launch.host_data,
        quote_service=launch.quote_service,
    )
