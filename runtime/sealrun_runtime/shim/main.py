"""The shim's entry: `sealrun-shim --directory ROOT/ID --listen-fd N`, executed by `create`.

N listens on ROOT/ID/shim.sock; everything else stands in the directory (handover.py). What can be
done without asyncio and ZeroMQ is done here, so that the VM starts as early as possible.
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sealrun_runtime.shim.machine import Planner

_USAGE: Final = "usage: sealrun-shim --directory DIR --listen-fd N"


def main(arguments: Sequence[str], planner: "Planner | None" = None) -> int:
    """Run one sandbox to its end; the exit status. planner: how the VM comes about; the
    host's own where none is given."""
    try:
        directory, listener = _parse(arguments)
    except ValueError:
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    # asyncio and hashlib import OpenSSL where there is one and do without where there is none. No
    # TLS ends here: that is 8 MB of each shim's memory and 10 ms of its start.
    for name in ("ssl", "_hashlib"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    from sealrun_runtime.shim import life, machine

    os.umask(0o077)
    os.chdir(directory)
    status = life.run(directory, listener, planner or machine.plan)
    sys.stderr.flush()
    # Not through the interpreter's end, which would wait for a name that is being looked up.
    os._exit(status)


def _parse(arguments: Sequence[str]) -> tuple[str, int]:
    """Directory and descriptor. Raises ValueError."""
    match arguments:
        case ["--directory", directory, "--listen-fd", number]:
            return os.path.abspath(directory), int(number)
    raise ValueError
