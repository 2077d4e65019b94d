"""What the VM is given while it runs: CPUs, which the kernel leaves offline, and memory, of which it does
not give more to file systems that are mounted already."""

import os
import re
from typing import Final

from sealrun_protocol.errors import ErrorCode

from sealrun_agent import boot
from sealrun_agent.errors import BootError, RunError

CPUS: Final = "/sys/devices/system/cpu"
_CPU: Final = re.compile(r"cpu[0-9]+")


def take() -> int:
    """Take into use whatever is there; how many CPUs are online then. Raises RunError."""
    online = bring_online()
    try:
        boot.remount()
    except (OSError, BootError) as error:
        raise _failed(error) from error
    return online


def bring_online(directory: str = CPUS) -> int:
    """Let all CPUs run; how many do then. Raises RunError."""
    try:
        for name in os.listdir(directory):
            # The first CPU has no such file where it cannot be taken away.
            switch = f"{directory}/{name}/online"
            if _CPU.fullmatch(name) and os.path.exists(switch) and _read(switch) == "0":
                with open(switch, "w") as file:
                    file.write("1")
        return count(_read(f"{directory}/online"))
    except OSError as error:
        raise _failed(error) from error


def count(ranges: str) -> int:
    """How many numbers there are in a list as "0-2,5"."""
    spans = [span.partition("-") for span in ranges.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in spans)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _failed(error: Exception) -> RunError:
    return RunError(ErrorCode.RUNTIME_FAILED, f"cannot use what was added: {error}")
