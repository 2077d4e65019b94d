"""What the guest accepts of the host's config.json, and the config.json that it writes for crun.

The host describes the container; the guest decides. Nothing is passed through: every value is read
into a type of runtime_spec.py, checked, and written again, so crun never parses a byte that the
host wrote. What is unknown is refused, what is left out stands here, in mounts.py and in linux.py
with the reason:

- hooks are refused: they would run in the guest, outside of the container.
- annotations are left out: crun obeys some of them (run.oci.*).
- root.path is the host's and means nothing here; the image's root file system stands in its place.
- domainname, and strings with NUL (crun reads C strings) are refused.

Texts name the place as JSON path: `process.args[0]: expected str, got int`.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from sealrun_protocol import limits, messages

from sealrun_agent.container import process
from sealrun_agent.container.linux import accept_linux
from sealrun_agent.container.mounts import PREPARED_FILES, accept_mounts, is_prepared_file
from sealrun_agent.container.reading import check_for_c, read
from sealrun_agent.container.runtime_spec import Root, Spec, refused

_VERSION: Final = "1.0.2"
_HOSTNAME_BYTES: Final = 64  # HOST_NAME_MAX

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
    for name, hooks in (given.hooks or {}).items():
        if hooks:
            raise refused(f"hooks.{name}", "hooks do not run in the guest")
    if given.domainname:
        raise refused("domainname", "it is not supported in the guest")
    if len(given.hostname.encode()) > _HOSTNAME_BYTES:
        raise refused("hostname", f"it is longer than {_HOSTNAME_BYTES} bytes")
    linux = accept_linux(given.linux)
    mounts = accept_mounts(given.mounts or ())
    spec = Spec(
        ociVersion=_VERSION,
        process=process.accept(given.process, request, "process"),
        root=Root(path="", readonly=given.root.readonly),
        hostname=given.hostname,
        mounts=mounts,
        linux=linux.part,
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


def _prepared(spec: Spec, files: Mapping[str, bytes]) -> dict[str, bytes]:
    prepared = {}
    for mount in filter(is_prepared_file, spec.mounts or ()):
        content = files.get(mount.destination, b"")
        if len(content) > limits.FILE_BYTES:
            raise refused(f"files[{mount.destination}]", f"longer than {limits.FILE_BYTES} bytes")
        prepared[PREPARED_FILES[mount.destination]] = content
    return prepared
