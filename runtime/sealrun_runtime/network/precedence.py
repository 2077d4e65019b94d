"""A table of IPv6 routes that counts before the one of the namespace's own addresses.

IPv4 takes a route in front of the kernel's own; IPv6 orders routes by a metric, which no route has
lower than the kernel's. So there is a rule, for what the namespace's own programs send, in front of the
rule that all begin with. It is taken away with the last door; where everybody was killed it stays,
and leads to an empty table.
"""

import contextlib
import errno
import socket
from typing import Final

from sealrun_protocol.rtnetlink import LOCAL_TABLE, Flag, Kind, attribute, number, rule_body

from sealrun_runtime.network.netlink import Netlink

TABLE: Final = 83
_INET6: Final = socket.AF_INET6
_INPUT, _PRIORITY = 3, 6  # FRA_IIFNAME, FRA_PRIORITY of linux/fib_rules.h
_FIRST: Final = number(_PRIORITY, 0)
_OWN: Final = rule_body(_INET6, TABLE) + attribute(_INPUT, b"lo\0") + _FIRST
_LOCAL: Final = rule_body(_INET6, LOCAL_TABLE) + _FIRST


def take(netlink: Netlink) -> None:
    """From now on it counts. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        netlink.change(Kind.NEW_RULE, _OWN, Flag.CREATE | Flag.EXCLUSIVE)
        # It came behind the kernel's: one more of that comes behind it, and then the first of them goes.
        netlink.change(Kind.NEW_RULE, _LOCAL, Flag.CREATE)
        netlink.change(Kind.DELETE_RULE, _LOCAL)


def give_up(netlink: Netlink) -> None:
    """All is as before. Raises OSError."""
    try:
        netlink.change(Kind.DELETE_RULE, _OWN)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EAFNOSUPPORT):  # there is none, or no IPv6
            raise
