"""The directory that crun runs a container from, and what else the VM needs before it does."""

import os
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.messages import File

from sealrun_agent.container.cgroup import path_of
from sealrun_agent.container.runtime_spec import Resources, refused
from sealrun_agent.container.spec import Accepted, Places, render
from sealrun_agent.errors import StartError

_LENGTH: Final = limits.CONTAINER_ID_LENGTH
_CONTAINER_ID: Final = re.compile(rf"(?!\.\.?\Z)[A-Za-z0-9_.+][A-Za-z0-9_.+-]{{0,{_LENGTH - 1}}}")


def is_container_id(name: str) -> bool:
    """Whether `name` can be the name of a container, a directory and a cgroup."""
    return _CONTAINER_ID.fullmatch(name) is not None


class Bundle(NamedTuple):
    """Where the files of one container are. Only the agent reads and writes here."""

    container: str
    directory: str

    @property
    def pid_file(self) -> str:
        """Written by crun create."""
        return f"{self.directory}/pid"

    @property
    def log(self) -> str:
        """Written by each call of crun anew."""
        return f"{self.directory}/crun.log"


class Own(NamedTuple):
    """What was made for a container elsewhere. Members as of Places."""

    share: str
    sandbox: str
    volumes: Mapping[str, str]


def write_bundle(parent: str, container: str, accepted: Accepted, rootfs: str, own: Own) -> Bundle:
    """Make `parent`/`container` with config.json and the copied files.

    Raises StartError(RUNTIME_FAILED) where the file system does not take them."""
    bundle = Bundle(container, f"{parent}/{container}")
    files = f"{bundle.directory}/files"
    config = render(accepted, Places(rootfs, files, *own, cgroup=path_of(container)))
    try:
        os.makedirs(files, mode=0o700)
        _write(f"{bundle.directory}/config.json", File(content=config, mode=0o600))
        for name, file in accepted.files.items():
            _write(f"{files}/{name}", file)
    except OSError as error:
        remove_bundle(bundle)
        raise StartError(
            ErrorCode.RUNTIME_FAILED, f"cannot write the container's bundle: {error.strerror}"
        ) from error
    return bundle


def refresh_files(bundle: Bundle, files: dict[str, File]) -> None:
    """Give copies another content, in place: the container has them bound.

    Raises StartError(SPEC_REFUSED) where there is no such copy, StartError(RUNTIME_FAILED)."""
    for name, file in files.items():
        try:
            flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW
            with open(os.open(f"{bundle.directory}/files/{name}", flags), "wb") as stream:
                stream.write(file.content)
        except FileNotFoundError:
            raise refused(f"mounts[{name}]", "there is no copy of its file") from None
        except OSError as error:
            raise StartError(
                ErrorCode.RUNTIME_FAILED, f"cannot write the copy of a file: {error.strerror}"
            ) from error


def write_resources(bundle: Bundle, resources: Resources) -> str:
    """The path of a file with new limits. Raises StartError(RUNTIME_FAILED)."""
    path = f"{bundle.directory}/resources.json"
    try:
        with open(path, "wb") as file:
            file.write(msgspec.json.encode(resources))
    except OSError as error:
        raise StartError(
            ErrorCode.RUNTIME_FAILED, f"cannot write the container's limits: {error.strerror}"
        ) from error
    return path


def make_device_directory(accepted: Accepted, rootfs: str) -> None:
    """crun puts the default devices into the root's /dev and fails where an image has none, unless
    something is mounted there. Raises StartError(RUNTIME_FAILED)."""
    if any(mount.destination.rstrip("/") == "/dev" for mount in accepted.spec.mounts or ()):
        return
    try:
        os.mkdir(f"{rootfs}/dev", 0o755)
    except FileExistsError:
        pass  # whatever it is: crun does not follow links out of the root
    except OSError as error:
        raise StartError(
            ErrorCode.RUNTIME_FAILED, f"cannot make /dev in the root: {error.strerror}"
        ) from error


def remove_bundle(bundle: Bundle) -> None:
    """Idempotent. (By hand: importing shutil costs the boot 20 ms under emulation.)"""
    for parent, _, files in os.walk(bundle.directory, topdown=False):
        for name in files:
            os.unlink(f"{parent}/{name}")
        os.rmdir(parent)


def set_sysctl(settings: dict[str, str], proc: str = "/proc/sys") -> None:
    """Set what belongs to the VM's network, or to the calling thread's ipc namespace. Names were checked by
    linux.split_sysctl.

    Raises StartError(SPEC_REFUSED) where the kernel does not take it."""
    for name, value in settings.items():
        try:
            with open(f"{proc}/{name.replace('.', '/')}", "w") as file:
                file.write(value)
        except (OSError, ValueError) as error:
            why = (isinstance(error, OSError) and error.strerror) or str(error)
            raise StartError(
                ErrorCode.SPEC_REFUSED, f"linux.sysctl.{name}: cannot set {value!a}: {why}"
            ) from error


def _write(path: str, file: File) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(file.content)
        os.fchown(stream.fileno(), file.uid, file.gid)
        os.fchmod(stream.fileno(), file.mode)  # whatever the umask says
