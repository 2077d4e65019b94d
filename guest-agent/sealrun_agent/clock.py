"""The VM's clock, which has the host's time: a VM may have no other.

The host is not trusted with it, but with the validity of certificates, which nothing else here depends on.
"""

import os
import time
from typing import Final

NEWEST: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "newest")
"""What the guest image says of its age: when the newest file of its packages was made, in seconds since 1970."""
STEP_NS: Final = 1_000_000_000  # a message may take that long; what is less, nobody notices


def set_first(host_time: int) -> None:
    """The host's time, but not before the guest image's packages were made: a clock turned back would make expired
    certificates valid again. Not the time of a file: those in the image have none, so that it can be built
    again. host_time: nanoseconds since 1970. Raises OSError, OverflowError, ValueError."""
    with open(NEWEST, "rb") as file:
        _set(max(host_time, int(file.read()) * 1_000_000_000))


def follow(host_time: int) -> None:
    """Catch up with the host, where the VM was stopped for a while (a host that slept, a VMM that was frozen)
    or the host's clock was set. Never back: see above. Raises OSError."""
    if host_time - time.time_ns() > STEP_NS:
        _set(host_time)


def _set(now: int) -> None:
    time.clock_settime_ns(time.CLOCK_REALTIME, now)
