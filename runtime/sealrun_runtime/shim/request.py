"""The larger requests to the guest, built from what `create` handed over."""

import os
import stat
import time
from collections.abc import Iterable, Mapping

from sealrun_protocol import limits
from sealrun_protocol.messages import ConfigureSandbox, CreateContainer, ExecProcess, File

from sealrun_runtime import pod, sharing
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.handover import Handover
from sealrun_runtime.shim.errors import HostFailed
from sealrun_runtime.shim.process import Process


def configure_sandbox(number: int, handover: Handover) -> ConfigureSandbox:
    """The first request of a sandbox."""
    return ConfigureSandbox(
        id=number,
        init_data=handover.init_data,
        # As crun has it: who asks for no name of its own has the host's (--uts=host).
        hostname=handover.container.hostname or os.uname().nodename,
        time_ns=time.time_ns(),
        sysctl=handover.container.sysctl if handover.pod is not None else {},
    )


def create_container(
    number: int,
    handover: Handover,
    oci_config: bytes,
    process: Process,
    copies: Mapping[int, File],
    *,
    disks: Mapping[int, str],
) -> CreateContainer:
    """copies: by index of the mount. disks: their names in the guest, by index of the device."""
    container = handover.container
    plan = sharing.planned(handover)
    return CreateContainer(
        id=number,
        container=handover.id,
        config=oci_config,
        image=handover.image,
        insecure_registries=handover.config.image.insecure_registries,
        cached=handover.config.image.transport == "cache",
        shared_root=plan.root,
        shared_mounts=plan.shared,
        files=dict(copies),
        volumes=handover.volumes,
        disks=dict(disks),
        shm_bytes=shm_bytes(container),
        joins=pod.joins(container, handover.pod),
        stdin=process.ids.stdin,
        stdout=process.ids.stdout,
        stderr=process.ids.stderr,
        terminal=process.has_terminal,
        rows=process.size.rows,
        columns=process.size.columns,
    )


def execute(number: int, container: str, name: str, config: bytes, process: Process) -> ExecProcess:
    """config: the OCI `process` object."""
    return ExecProcess(
        id=number,
        container=container,
        process=name,
        config=config,
        stdin=process.ids.stdin,
        stdout=process.ids.stdout,
        stderr=process.ids.stderr,
        terminal=process.has_terminal,
        rows=process.size.rows,
        columns=process.size.columns,
    )


def files(container: ContainerSpec, copied: Iterable[int]) -> dict[int, File]:
    """Copies of the sources of these mounts. Raises HostFailed."""
    found = {index: _copy(sharing.source_of(container, index)) for index in copied}
    if sum(len(file.content) for file in found.values()) > limits.FILES_BYTES:
        raise HostFailed(
            f"cannot copy the container's files: they are larger than {limits.FILES_BYTES} bytes"
        )
    return found


def shm_bytes(container: ContainerSpec) -> int:
    """The size of the file system that an engine made for /dev/shm (Podman's --shm-size); 0 where it
    is not known."""
    for index, mount in enumerate(container.mounts):
        if mount.destination == sharing.SHARED_MEMORY and sharing.is_bind(mount):
            try:
                about = os.statvfs(sharing.source_of(container, index))
            except OSError:
                return 0
            return about.f_blocks * about.f_frsize
    return 0


def _copy(path: str) -> File:
    try:
        # Not blocking: it is named by the bundle, and could be a fifo.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            about = os.fstat(fd)
            content = file.read(limits.FILE_BYTES + 1)
    except OSError as error:
        raise HostFailed(f"cannot read {path}: {error.strerror}") from error
    if content is None or len(content) > limits.FILE_BYTES:
        raise HostFailed(f"cannot read {path}: it is larger than {limits.FILE_BYTES} bytes")
    mode = stat.S_IMODE(about.st_mode) & 0o777
    return File(content=content, mode=mode, uid=about.st_uid, gid=about.st_gid)
