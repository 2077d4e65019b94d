"""How many files this process and its children, the shim first, may have open: as many as the hard limit lets them.

Some engines are started with a soft limit that is made for programs which use select(2).
"""

import resource
from typing import Final

from sealrun_runtime.errors import HostError

_LEAST: Final = (
    128  # a shim with its VM, network and stdio has 40, and a few for each volume and exec
)
_GIVEN: Final = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # the soft limit of the engine


def raise_limit() -> int:
    """What the limit is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except ValueError:  # more than the kernel gives anybody today (fs.nr_open)
        return soft
    return hard


def provide() -> None:
    """The same, and there have to be enough for a sandbox. Raises HostError."""
    limit = raise_limit()
    if limit != resource.RLIM_INFINITY and limit < _LEAST:
        raise HostError(
            f"cannot start a VM where a process may have no more than {limit} files open",
            remedy=f"give the engine a hard limit of {_LEAST} or more (ulimit -Hn, LimitNOFILE= of its unit)",
        )


def restore_limit() -> None:
    """For another's program: what it would have had without this process."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (_GIVEN, hard))
