"""The larger requests to the guest, built from what `create` handed over."""

import os
import time
from typing import Final

from sealrun_protocol import limits
from sealrun_protocol.messages import ConfigureSandbox, CreateContainer, ExecProcess

from sealrun_runtime.handover import Handover
from sealrun_runtime.oci_config import Mount
from sealrun_runtime.shim import shared_root
from sealrun_runtime.shim.errors import HostFailed
from sealrun_runtime.shim.process import Process

# What engines prepare for each container on the host and bind-mount over the image's own.
FILES: Final = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


def configure_sandbox(number: int, handover: Handover) -> ConfigureSandbox:
    """The first request of a sandbox."""
    return ConfigureSandbox(
        id=number,
        init_data=handover.init_data,
        hostname=handover.container.hostname,
        time_ns=time.time_ns(),
    )


def create_container(
    number: int, handover: Handover, oci_config: bytes, process: Process
) -> CreateContainer:
    """Raises HostFailed where a file cannot be read."""
    return CreateContainer(
        id=number,
        container=handover.id,
        config=oci_config,
        image=handover.image,
        share="" if handover.image else shared_root.TAG,
        insecure_registries=handover.config.image.insecure_registries,
        files=files(handover.container.mounts),
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


def files(mounts: tuple[Mount, ...]) -> dict[str, bytes]:
    """The content of the small files that the engine bind-mounts. Raises HostFailed."""
    found = {}
    for mount in mounts:
        if mount.destination in FILES and (mount.type == "bind" or _binds(mount)):
            found[mount.destination] = _content(mount.source)
    return found


def _binds(mount: Mount) -> bool:
    return bool({"bind", "rbind"} & set(mount.options or ()))


def _content(path: str) -> bytes:
    try:
        # Not blocking: it is named by the bundle, and could be a fifo.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            content = file.read(limits.FILE_BYTES + 1)
    except OSError as error:
        raise HostFailed(f"cannot read {path}: {error.strerror}") from error
    if content is None or len(content) > limits.FILE_BYTES:
        raise HostFailed(f"cannot read {path}: it is larger than {limits.FILE_BYTES} bytes")
    return content
