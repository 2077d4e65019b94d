"""What the guest accepts of the host's config.json, and the config.json that it writes for crun.

The host describes the container; the guest decides. Nothing is passed through: every value is read
into a type of runtime_spec.py, checked, and written again, so crun never parses a byte that the
host wrote. What is unknown is refused, what is left out stands here, in mounts.py and in linux.py
with the reason:

- prestart, createRuntime, poststart and poststop hooks are left out: the host runs them. createContainer
  and startContainer hooks run here, where the tenant allows them (workload.py).
- annotations are left out: crun obeys some of them (run.oci.*).
- root.path is the host's and means nothing here; the image's root file system stands in its place.
- strings with NUL (crun reads C strings) are refused.

Texts name the place as JSON path: `process.args[0]: expected str, got int`.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from sealrun_protocol import limits, messages

from sealrun_agent.container import process
from sealrun_agent.container.linux import accept_linux
from sealrun_agent.container.mounts import (
    PREPARED_FILES,
    accept_mounts,
    check_absolute,
    is_prepared_file,
)
from sealrun_agent.container.reading import check_for_c, read
from sealrun_agent.container.runtime_spec import Hooks, Root, Spec, refused

_VERSION: Final = "1.0.2"
_NAME_BYTES: Final = 64  # HOST_NAME_MAX, and the kernel's __NEW_UTS_LEN

_encoder = msgspec.json.Encoder()


class Accepted(NamedTuple):
    """A container that the guest is willing to run.

    files: content of what the bundle's `files` directory holds, by name there.
    network_sysctl: to be set in the VM's network namespace, by name with dots.
    """

    spec: Spec
    files: dict[str, bytes]
    network_sysctl: dict[str, str]


def accept(request: messages.CreateContainer) -> Accepted:
    """Read and check. Files of the request are unused where its config does not mount them.

    Raises StartError(SPEC_REFUSED)."""
    given = read(request.config, Spec, "")
    if not given.ociVersion.startswith("1."):
        raise refused("ociVersion", f"{given.ociVersion!a} is not 1.x")
    for name in ("hostname", "domainname"):
        if len(getattr(given, name).encode()) > _NAME_BYTES:
            raise refused(name, f"it is longer than {_NAME_BYTES} bytes")
    linux = accept_linux(given.linux)
    mounts = accept_mounts(given.mounts or ())
    spec = Spec(
        ociVersion=_VERSION,
        process=process.accept(given.process, request, "process"),
        root=Root(path="", readonly=given.root.readonly),
        hostname=given.hostname,
        domainname=given.domainname,
        mounts=mounts,
        linux=linux.part,
        hooks=_accept_hooks(given.hooks or Hooks()),
    )
    check_for_c("", spec)
    return Accepted(spec, _prepared(spec, request.files), linux.network_sysctl)


def render(accepted: Accepted, *, rootfs: str, files_dir: str, cgroup: str) -> bytes:
    """The config.json that crun gets. rootfs, files_dir: absolute paths in the guest.
    cgroup: below the root of the cgroup file system, starting with a slash."""
    spec = accepted.spec
    mounts = tuple(
        msgspec.structs.replace(mount, source=f"{files_dir}/{mount.source}")
        if is_prepared_file(mount)
        else mount
        for mount in spec.mounts or ()
    )
    return _encoder.encode(
        msgspec.structs.replace(
            spec,
            root=Root(path=rootfs, readonly=spec.root.readonly),
            mounts=mounts or None,
            linux=msgspec.structs.replace(spec.linux, cgroupsPath=cgroup),
        )
    )


def _accept_hooks(given: Hooks) -> Hooks | None:
    """Those that are the guest's."""
    for name in ("createContainer", "startContainer"):
        for index, hook in enumerate(getattr(given, name) or ()):
            check_absolute(f"hooks.{name}[{index}].path", hook.path)
    if not (given.createContainer or given.startContainer):
        return None
    return Hooks(createContainer=given.createContainer, startContainer=given.startContainer)


def _prepared(spec: Spec, files: Mapping[str, bytes]) -> dict[str, bytes]:
    prepared = {}
    for mount in filter(is_prepared_file, spec.mounts or ()):
        content = files.get(mount.destination, b"")
        if len(content) > limits.FILE_BYTES:
            raise refused(f"files[{mount.destination}]", f"longer than {limits.FILE_BYTES} bytes")
        prepared[PREPARED_FILES[mount.destination]] = content
    return prepared
