"""The guest's serial console, a bounded file that the driver writes and that stays for post-mortem."""

import os
import re
from typing import Final

from sealrun_runtime.shim.errors import wire_text

LINE_CHARACTERS: Final = 200
_TAIL_BYTES: Final = 16 << 10
_ESCAPE: Final = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][0-9A-Za-z]|.)")
_NOISE: Final = re.compile(r"---\[|reboot: |Rebooting in|acpi|\[[ .0-9]+\]\s*$", re.IGNORECASE)


def last_words(path: str) -> str:
    """The line of the console that best tells why the guest ended: a kernel panic, else the last
    one that says something. Empty where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [wire_text(_ESCAPE.sub("", line)) for line in re.split(r"[\r\n]+", text)]
    lines = [line for line in lines if line and not _NOISE.search(line)]
    panics = [line for line in lines if "Kernel panic" in line and "end Kernel panic" not in line]
    chosen = (panics or lines or [""])[-1]
    return chosen[:LINE_CHARACTERS]
