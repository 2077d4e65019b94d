"""How many files this process and its children, the shim first, may have open: as many as the hard limit lets them.

Some engines are started with a soft limit that is made for programs which use select(2).
"""

import resource
from typing import Final

from sealrun_runtime.errors import HostError

_LEAST: Final = (
    128  # a shim with its VM, network and stdio has 40, and a few for each volume and exec
)


def raise_limit() -> int:
    """What the limit is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def provide() -> None:
    """The same, and there have to be enough for a sandbox. Raises HostError."""
    hard = raise_limit()
    if hard != resource.RLIM_INFINITY and hard < _LEAST:
        raise HostError(
            f"cannot start a VM where a process may have no more than {hard} files open",
            remedy=f"give the engine a hard limit of {_LEAST} or more (ulimit -Hn, LimitNOFILE= of its unit)",
        )
