"""VmSpec to QEMU's argument vector: pure, and compared with golden files.

Every choice of devices stands here. The machine type is q35 without its legacy devices
(docs/decisions.md says why not microvm); all devices are modern virtio on PCI.
"""

import json
import os

from sealrun_protocol import disk_names
from sealrun_protocol.messages import CHANNEL_PORT_NAME

from sealrun_vmm import growth
from sealrun_vmm.qemu import confidential
from sealrun_vmm.spec import (
    NO_SCRATCH,
    Accelerator,
    Disk,
    Nic,
    Share,
    Tee,
    VmSpec,
)

GROWTH = "growth"  # the virtio-mem device, and its memory
NO_CONTROL = -1
TRANSLATION_CACHE_MIB = 128  # of TCG; QEMU's default is an eighth of the host's memory

_MACHINE = "q35,smm=off,sata=off,smbus=off,vmport=off,hpet=off,i8042=off,usb=off"
# `max`: most named models lack RDRAND, without which Python does not start. What is off lengthens
# page walks and context switches under emulation (a tenth of the boot), or makes kernel and libc clear
# and copy memory by the byte, each one an instruction (another tenth), and nobody here needs it.
_EMULATED_CPU = "max,la57=off,pku=off,mpx=off,erms=off,fsrm=off"
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_MODERN = "disable-legacy=on"


def arguments(binary: str, spec: VmSpec, control: int = NO_CONTROL) -> list[str]:
    """The command that boots `spec`. control: the descriptor of a connected socket on which QEMU is
    to take commands. Raises SpecRefused for what this driver cannot do."""
    confidential.check(spec)
    command = [binary, "-name", f"guest={_value(spec.name)}"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-sandbox", _SANDBOX]
    command += _machine(spec)
    command += _growth(spec)
    command += confidential.arguments(spec)
    command += ["-kernel", _file(spec.kernel), "-initrd", _file(spec.initrd)]
    command += ["-append", spec.cmdline]
    # The driver copies standard output to the console's file, and bounds it.
    command += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    if control != NO_CONTROL:
        command += ["-chardev", f"socket,id=control,fd={control}"]
        command += ["-mon", "chardev=control,mode=control"]
    command += _channel(spec)
    command += ["-object", "rng-builtin,id=rng", "-device", f"virtio-rng-pci,rng=rng,{_MODERN}"]
    command += _scratch(spec)
    for index, nic in enumerate(spec.nics):
        command += _nic(index, nic)
    for index, share in enumerate(spec.shares):
        command += _share(index, share)
    # Disks lie in ports from the beginning, so that they can leave.
    for index in range(len(spec.disks) + spec.later_devices):
        command += _port(index)
    for index, disk in enumerate(spec.disks):
        back_end = back_end_of(spec, disk)
        option = "-object" if disk.pmem_bytes else "-blockdev"
        command += [option, json.dumps(back_end), "-device", json.dumps(disk_in_port(index, disk))]
    return command


def _machine(spec: VmSpec) -> list[str]:
    machine = _MACHINE + confidential.machine_options(spec)
    size = f"{spec.memory_mib}M"
    if room := growth.room_mib(spec) + spec.pmem_mib:
        size += f",maxmem={spec.memory_mib + room}M"
    memory = ["-m", size]
    # virtiofsd maps the guest's memory; of an SNP guest's, KVM takes the private part away.
    if spec.shares or spec.tee is Tee.SNP:
        machine += ",memory-backend=ram"
        memory += ["-object", f"memory-backend-memfd,id=ram,size={spec.memory_mib}M,share=on"]
    if spec.accelerator is Accelerator.KVM:
        execution = ["-accel", "kvm", "-cpu", spec.cpu_model or "host"]
    else:
        cache = f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}"
        execution = ["-accel", cache, "-cpu", _EMULATED_CPU]
    cpus = str(spec.cpus)
    if spec.max_cpus > spec.cpus:
        cpus += f",maxcpus={spec.max_cpus}"
    return ["-machine", machine, *execution, "-smp", cpus, *memory]


def _growth(spec: VmSpec) -> list[str]:
    """What it takes to make the VM larger, and to get back what it does not use."""
    words = []
    if spec.tee is Tee.NONE:
        words += ["-device", f"virtio-balloon-pci,free-page-reporting=on,{_MODERN}"]
    if room := growth.room_mib(spec):
        kind = "memory-backend-memfd,share=on" if spec.shares else "memory-backend-ram"
        words += ["-object", f"{kind},id={GROWTH},size={room}M,reserve=off"]
        device = f"virtio-mem-pci,memdev={GROWTH},id={GROWTH},requested-size=0,{_MODERN}"
        words += ["-device", device]
    return words


def _channel(spec: VmSpec) -> list[str]:
    socket = f"socket,id=channel,path={_file(spec.channel)},server=off"
    port = f"virtserialport,chardev=channel,name={CHANNEL_PORT_NAME}"
    return [
        *("-device", f"virtio-serial-pci,max_ports=2,{_MODERN}"),
        *("-chardev", socket, "-device", port),
    ]


def back_end_of(spec: VmSpec, disk: Disk) -> dict[str, object]:
    """What a block device of the host is to QEMU, called as its serial: the arguments of blockdev-add, or for
    persistent memory those of object-add."""
    path = spec.node(disk)
    if disk.pmem_bytes:
        backing = {"mem-path": path, "size": disk.pmem_bytes, "share": True}
        return {"qom-type": "memory-backend-file", "id": disk.serial, **backing}
    return {
        "driver": "raw",
        "node-name": disk.serial,
        "read-only": disk.readonly,
        "discard": "unmap",
        "file": {"driver": "host_device", "filename": path},
    }


def disk_in_port(port: int, disk: Disk) -> dict[str, object]:
    """A block device of the host that is plugged into a port: the arguments of device_add. An error of a
    disk is told to the guest instead of stopping the VM."""
    place: dict[str, object] = {"bus": f"port{port}", "disable-legacy": "on"}
    if disk.pmem_bytes:
        return {"driver": "virtio-pmem-pci", "id": disk.serial, "memdev": disk.serial, **place}
    return {
        "driver": "virtio-blk-pci",
        "id": disk.serial,
        "drive": disk.serial,
        "serial": disk.serial,
        "werror": "report",
        "rerror": "report",
        **place,
    }


def _scratch(spec: VmSpec) -> list[str]:
    """Nobody reads it after the VM, so the host's disk need not be waited for; an error of it, a full
    one included, is told to the guest instead of stopping the VM."""
    if spec.scratch == NO_SCRATCH:
        return []
    file = f"file.driver=file,file.filename=/proc/self/fd/{spec.scratch}"
    node = f"driver=raw,node-name=scratch,{file},cache.no-flush=on,discard=unmap"
    device = f"virtio-blk-pci,drive=scratch,serial={disk_names.SCRATCH},werror=report,rerror=report"
    return ["-blockdev", node, "-device", f"{device},{_MODERN}"]


def _nic(index: int, nic: Nic) -> list[str]:
    device = f"virtio-net-pci,netdev=nic{index},mac={_value(nic.mac)},host_mtu={nic.mtu}"
    return [
        *("-netdev", f"tap,id=nic{index},fd={nic.tap_fd},vhost=off"),
        *("-device", f"{device},romfile=,{_MODERN}"),
    ]


def nic_in_port(port: int, name: str, nic: Nic) -> tuple[dict[str, object], dict[str, object]]:
    """The arguments of netdev_add and device_add for a device that is plugged into a port. The tap's
    descriptor was given to QEMU under the same name."""
    backend: dict[str, object] = {"type": "tap", "id": name, "fd": name, "vhost": False}
    device: dict[str, object] = {
        "driver": "virtio-net-pci",
        "id": name,
        "netdev": name,
        "bus": f"port{port}",
        "mac": nic.mac,
        "host_mtu": nic.mtu,
        "romfile": "",
        "disable-legacy": "on",
    }
    return backend, device


def _port(index: int) -> list[str]:
    """A place for a device that comes later: q35's own bus has none."""
    place = f"chassis={index + 1},slot={index + 1}"
    return ["-device", f"pcie-root-port,id=port{index},bus=pcie.0,{place}"]


def _share(index: int, share: Share) -> list[str]:
    return [
        *("-chardev", f"socket,id=share{index},path={_file(share.socket)}"),
        *("-device", f"vhost-user-fs-pci,chardev=share{index},tag={_value(share.tag)}"),
    ]


def _file(path: str) -> str:
    """A path as an option's value; a relative one, which may start like a protocol, is marked."""
    return _value(path if os.path.isabs(path) else f"./{path}")


def _value(text: str) -> str:
    """QEMU reads a doubled comma as a comma of the value."""
    return text.replace(",", ",,")
