"""What a description of the network must be, besides what its types say.

The network is the host's anyway, so this protects no secret: it keeps the guest's own loopback out of
the host's reach, and turns what the kernel would refuse halfway into an error before anything is done.
"""

from typing import Final

from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.network import SETTINGS, Address, Interface, Network, Route

from sealrun_agent.errors import StartError

_RESERVED_NAMES: Final = frozenset({"lo", "all", "default"})  # the latter two: of sysctls
_BITS: Final = {4: 32, 16: 128}
_LOOPBACK_6: Final = bytes(15) + b"\1"
_MAPPED: Final = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, IPv4 in the clothes of IPv6


def check(network: Network) -> None:
    """Raises StartError(NETWORK_FAILED)."""
    names: set[str] = set()
    devices: set[bytes] = set()
    for index, interface in enumerate(network.interfaces):
        path = f"interfaces[{index}]"
        if interface.name in names or interface.name in _RESERVED_NAMES:
            raise refused(f"{path}.name", f"{interface.name} is taken")
        if interface.device in devices:
            raise refused(f"{path}.device", "it is another interface's")
        names.add(interface.name)
        devices.add(interface.device)
        _check_interface(path, interface)
    for index, route in enumerate(network.routes):
        _check_route(f"routes[{index}]", route, names)
    for index, neighbour in enumerate(network.neighbours):
        path = f"neighbours[{index}]"
        _check_known(path, neighbour.interface, names)
        _check_ip(f"{path}.ip", neighbour.ip)


def refused(path: str, cause: str) -> StartError:
    """path: the place in the description."""
    return StartError(ErrorCode.NETWORK_FAILED, f"{path}: {cause}")


def _check_interface(path: str, interface: Interface) -> None:
    if interface.mac[0] & 1 or not any(interface.mac):
        raise refused(f"{path}.mac", "it is no address of one interface")
    for index, address in enumerate(interface.addresses):
        _check_address(f"{path}.addresses[{index}]", address)
    unknown = set(interface.settings) - SETTINGS
    if unknown:
        raise refused(f"{path}.settings", f"{min(unknown)!a} is not to be set")


def _check_address(path: str, address: Address) -> None:
    _check_ip(f"{path}.ip", address.ip)
    _check_prefix(path, address.prefix, address.ip)
    if address.broadcast and not len(address.broadcast) == len(address.ip) == 4:
        raise refused(f"{path}.broadcast", "it is no IPv4 address")


def _check_route(path: str, route: Route, names: set[str]) -> None:
    _check_known(path, route.interface, names)
    if len(route.destination) not in _BITS:
        raise refused(f"{path}.destination", "it is no IP address")
    _check_prefix(path, route.prefix, route.destination)
    if any(route.destination):  # else it is the default route
        _check_ip(f"{path}.destination", route.destination, many=True)
    for member in ("gateway", "source"):
        ip = getattr(route, member)
        if ip and len(ip) != len(route.destination):
            raise refused(f"{path}.{member}", "it is of another family than the destination")
        if ip:
            _check_ip(f"{path}.{member}", ip)


def _check_known(path: str, interface: str, names: set[str]) -> None:
    if interface not in names:
        raise refused(f"{path}.interface", f"{interface} is none of the interfaces")


def _check_prefix(path: str, prefix: int, ip: bytes) -> None:
    if prefix > _BITS[len(ip)]:
        raise refused(f"{path}.prefix", f"{prefix} is longer than the address")


def _check_ip(path: str, ip: bytes, *, many: bool = False) -> None:
    """An address that another machine may have. many: or several at once (multicast)."""
    if len(ip) not in _BITS:
        raise refused(path, "it is no IP address")
    plain = ip.removeprefix(_MAPPED) if len(ip) == 16 else ip
    if not any(ip) or ip == _LOOPBACK_6 or (len(plain) == 4 and plain[0] in {0, 127}):
        raise refused(path, "it belongs to the loopback, or to nobody")
    multicast = plain[0] >= 224 if len(plain) == 4 else plain[0] == 0xFF
    if multicast and not many:
        raise refused(path, "it is an address of many")
