"""What a container needs of systemd: a scope, more processes in it, other limits, its end.

See org.freedesktop.systemd1(5). systemd takes a scope away by itself once it is empty; it is stopped
here only where something stays in it.
"""

import time
from typing import Final, Self

from jeepney import DBusAddress

from sealrun_runtime.systemd.bus import Body, Bus, BusError, Refusal
from sealrun_runtime.systemd.properties import Properties

_NAME: Final = "org.freedesktop.systemd1"
_MANAGER: Final = DBusAddress("/org/freedesktop/systemd1", _NAME, f"{_NAME}.Manager")
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_REMOVED: Final = f"type='signal',interface='{_NAME}.Manager',member='JobRemoved'"
_EXISTS: Final = f"{_NAME}.UnitExists"
_NO_UNIT: Final = f"{_NAME}.NoSuchUnit"
_JOB_SECONDS: Final = 30.0
_LEAVING_SECONDS: Final = 5.0  # one of the same name, whose last process has just ended
_LOOK_SECONDS: Final = 0.05


class UnitExists(BusError):
    """A unit of this name is there and stays."""


class Manager:
    """systemd, the machine's or a user's. A context manager; everything raises BusError."""

    def __init__(self, address: str) -> None:
        """address: as of bus.Bus."""
        self._bus, self._subscribed = Bus(address), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bus.__exit__(*error)

    def root(self) -> str:
        """Its own control group, below which all of its units are; empty where that is the root."""
        return self._property(_MANAGER.object_path, _MANAGER.interface, "ControlGroup").rstrip("/")

    def start_scope(self, name: str, properties: Properties, *, patient: bool = True) -> None:
        """Make a scope; it is there on return. patient: wait for one of this name that is just going
        away. Raises UnitExists."""
        self._subscribe()
        deadline = time.monotonic() + (_LEAVING_SECONDS if patient else 0.0)
        body: Body = (name, "fail", list(properties), [])
        while True:
            try:
                answer = self._bus.call(_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
            except Refusal as error:
                if error.name != _EXISTS:
                    raise
                if time.monotonic() >= deadline:
                    raise UnitExists(f"there is a unit {name}") from error
                self.reset_failed(name)
                time.sleep(_LOOK_SECONDS)
            else:
                break
        result = self._wait(answer)
        if result != "done":
            self.reset_failed(name)
            raise BusError(f"its start ended with {result!r}")

    def description(self, name: str) -> str:
        """Of a unit; empty where there is none."""
        try:
            (path,) = self._bus.call(_MANAGER, "GetUnit", "s", (name,))
        except Refusal as error:
            if error.name != _NO_UNIT:
                raise
            return ""
        return self._property(str(path), f"{_NAME}.Unit", "Description")

    def attach(self, name: str, group: str, pid: int) -> None:
        """Move a process into a unit, or into the control group `group` below that (`/inside`)."""
        self._bus.call(_MANAGER, "AttachProcessesToUnit", "ssau", (name, group, [pid]))

    def set_properties(self, name: str, properties: Properties) -> None:
        """Until the unit ends."""
        body = (name, True, list(properties))
        self._bus.call(_MANAGER, "SetUnitProperties", "sba(sv)", body)

    def stop(self, name: str) -> None:
        """End what is in a unit, and wait for its end."""
        self._subscribe()
        try:
            self._bus.call(_MANAGER, "KillUnit", "ssi", (name, "all", 9))
            self._wait(self._bus.call(_MANAGER, "StopUnit", "ss", (name, "replace")))
        except Refusal as error:
            if error.name != _NO_UNIT:
                raise
        self.reset_failed(name)

    def reset_failed(self, name: str) -> None:
        """Forget a unit that failed, where there is one."""
        try:
            self._bus.call(_MANAGER, "ResetFailedUnit", "s", (name,))
        except Refusal as error:
            if error.name != _NO_UNIT:
                raise

    def _property(self, path: str, interface: str, name: str) -> str:
        """One that is a string."""
        place = DBusAddress(path, _NAME, _PROPERTIES)
        (value,) = self._bus.call(place, "Get", "ss", (interface, name))
        if not isinstance(value, tuple):
            raise BusError(f"its {name} is no property")
        return str(value[1])

    def _subscribe(self) -> None:
        """Be told of jobs that end; without a bus everybody is."""
        if not (self._bus.is_private or self._subscribed):
            self._bus.listen(_REMOVED)
            self._bus.call(_MANAGER, "Subscribe")
            self._subscribed = True

    def _wait(self, answer: Body) -> str:
        """How the job of an answer ended."""
        deadline = time.monotonic() + _JOB_SECONDS
        while True:
            _, job, _, result = self._bus.signal("JobRemoved", deadline)
            if job == answer[0]:
                return str(result)
