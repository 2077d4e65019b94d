#!/usr/bin/python3 -ISE
"""The real shim with the real Cloud Hypervisor driver, on a program that behaves as Cloud Hypervisor
does (cloud_hypervisor.py) and boots the real agent in namespaces.

    shim_on_simulator.py --directory DIR --listen-fd N

Everything comes in as Python arguments, which no configuration reaches: the program's path, and that
KVM is there. The container's annotation `test.simulator` holds the simulator's switches, and
`test.launch-seconds` how long a launch may take, `test.tpm-seconds` a TPM emulator's answer.
"""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
sys.path[:0] = [str(_ROOT / room) for room in ("runtime", "vmm", "guest-agent")]
sys.path.append(str(_ROOT / f"build/venv/lib/{_VERSION}/site-packages"))

from sealrun_runtime.handover import Handover  # noqa: E402
from sealrun_runtime.shim import machine  # noqa: E402
from sealrun_runtime.shim import tpm as emulator  # noqa: E402
from sealrun_runtime.shim.main import main  # noqa: E402
from sealrun_vmm import assets  # noqa: E402
from sealrun_vmm.cloud_hypervisor import landlock  # noqa: E402
from sealrun_vmm.cloud_hypervisor.driver import LAUNCH_SECONDS, CloudHypervisorDriver  # noqa: E402
from sealrun_vmm.driver import DriverName  # noqa: E402
from sealrun_vmm.spec import Accelerator, Tee  # noqa: E402
from sealrun_vmm.tee import tpm, tpm_relay  # noqa: E402
from sealrun_vmm.tee.launch import Launch  # noqa: E402

SIMULATOR = str(_ROOT / "tests/simulators/cloud_hypervisor.py")


def plan(handover: Handover) -> machine.Plan:
    """What the shim boots."""
    annotations = handover.container.annotations
    os.environ["SIMULATOR"] = annotations.get("test.simulator", "")
    if seconds := annotations.get("test.tpm-seconds"):
        emulator.ANSWER_SECONDS = tpm_relay.ANSWER_SECONDS = float(seconds)
    driver = CloudHypervisorDriver(
        SIMULATOR,
        kvm_obstacle=lambda: None,
        launch_seconds=float(annotations.get("test.launch-seconds", LAUNCH_SECONDS)),
    )
    image = assets.locate(handover.guest_image)
    launch = Launch(tee=Tee.TPM, tpm=tpm.SOCKET) if handover.config.tee == "tpm" else Launch()
    spec = machine.vm_spec(handover, image, Accelerator.KVM, launch, machine.this_host())
    if landlock.obstacle() is not None:
        import dataclasses

        spec = dataclasses.replace(spec, landlock=False)
    return machine.Plan(DriverName.CLOUD_HYPERVISOR, driver, spec)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], plan))
