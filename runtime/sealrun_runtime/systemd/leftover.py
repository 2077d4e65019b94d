"""The last resort for a scope whose processes should all have ended, and that is still there."""

from sealrun_runtime.cgroup_driver import find_bus
from sealrun_runtime.errors import HostError


def stop(scope: str, container: str) -> None:
    """End whatever is in it, where it is the container's and not another unit of this name. Raises
    HostError."""
    from sealrun_runtime.systemd.bus import BusError
    from sealrun_runtime.systemd.properties import describe
    from sealrun_runtime.systemd.scopes import Manager

    address = find_bus()
    try:
        with Manager(address) as manager:
            if manager.description(scope) == describe(container):
                manager.stop(scope)
    except BusError as error:
        raise HostError(f"cannot stop {scope}: systemd: {error}") from error
