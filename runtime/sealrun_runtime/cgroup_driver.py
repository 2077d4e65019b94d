"""Who makes the control groups of a container on this host: systemd, ourselves, or nobody.

As with runc and crun the engine decides, by `--systemd-cgroup` or `--cgroup-manager`, and
`linux.cgroupsPath` has the form that belongs to it. What does not fit is refused: a scope that was
asked of systemd is never made behind its back, nor a path in its form as a directory.
"""

import os
from typing import Final, NamedTuple

import msgspec

from sealrun_runtime import store
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.errors import HostError, InvalidRequest
from sealrun_runtime.systemd import properties, unit

SYSTEMD: Final = "systemd"
CGROUPFS: Final = "cgroupfs"
DISABLED: Final = "disabled"
MANAGERS: Final = (SYSTEMD, CGROUPFS, DISABLED)

SYSTEM_BUS: Final = "unix:path=/run/dbus/system_bus_socket;unix:path=/run/systemd/private"
"""Of the machine's systemd: the bus, and the socket of its own for a machine without one."""

_BOOTED: Final = "/run/systemd/system"  # sd_booted(3)
_WHERE: Final = "$.linux.cgroupsPath"
_OTHERWISE: Final = "let the engine make them itself (podman --cgroup-manager cgroupfs)"


class Choice(NamedTuple):
    """container: with the path that counts. bus: the address of the systemd that makes its scope;
    empty: its directories are made by hand, or it has none."""

    container: ContainerSpec
    bus: str = ""


def choose(manager: str, container: ContainerSpec, container_id: str) -> Choice:
    """manager: as on the command line. Raises InvalidRequest, HostError."""
    path = container.cgroups_path
    if manager not in MANAGERS:
        text = f"invalid cgroup manager {manager[:80]}: it is {', '.join(MANAGERS)}"
        raise InvalidRequest(text)
    if manager == DISABLED:
        return Choice(msgspec.structs.replace(container, cgroups_path=""))
    if manager == CGROUPFS:
        if unit.is_unit(path):
            raise InvalidRequest(
                f"{_WHERE}: {path!r} is a scope of systemd's", remedy="give --systemd-cgroup"
            )
        return Choice(container)
    if not path:
        path = f":sealrun:{unit.escape(container_id)}"
    try:
        unit.parse(path, default_slice())
    except ValueError as error:
        raise InvalidRequest(f"{_WHERE}: {error}", remedy="see systemd.unit(5)") from error
    try:
        properties.of_annotations(container.annotations)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return Choice(msgspec.structs.replace(container, cgroups_path=path), find_bus())


def default_slice() -> str:
    """Where a scope lies of which nothing is said."""
    return "user.slice" if store.in_user_namespace() else "system.slice"


def find_bus() -> str:
    """The address of this user's systemd. Raises HostError where it does not run."""
    if not store.in_user_namespace():
        if not os.path.isdir(_BOOTED):
            text = "cannot have a scope made: systemd does not run on this machine"
            raise HostError(text, remedy=_OTHERWISE)
        return SYSTEM_BUS
    if address := os.environ.get("DBUS_SESSION_BUS_ADDRESS", ""):
        return address
    directory = os.environ.get("XDG_RUNTIME_DIR", "")
    if directory and os.path.exists(f"{directory}/bus"):
        return f"unix:path={_escape(directory)}/bus"
    raise HostError(
        "cannot have a scope made: the user's systemd cannot be found, neither by "
        "DBUS_SESSION_BUS_ADDRESS nor in XDG_RUNTIME_DIR",
        remedy=f"log in to a session or loginctl enable-linger, or {_OTHERWISE}",
    )


def _escape(path: str) -> str:
    """D-Bus specification, "Server Addresses"."""
    plain = "-0123456789_/.*"
    return "".join(
        chr(byte) if chr(byte) in plain or (chr(byte).isalpha() and byte < 128) else f"%{byte:02x}"
        for byte in os.fsencode(path)
    )
