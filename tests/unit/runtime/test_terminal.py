"""A foreground `run` or `exec` between its own terminal and the container's."""

import os
import subprocess
import sys

from fixtures.cli import ROOT

PROXY = """
import os
from sealrun_runtime.terminal import Size, Terminal, proxied
with proxied(Terminal(Size(0, 0)).master):
    print(os.read(0, 100))
"""


def test_what_was_typed_before_is_not_lost() -> None:
    """CRI-O writes what the user typed as soon as it has begun us."""
    master, slave = os.openpty()
    try:
        os.write(master, b"early\n")
        done = subprocess.run(
            [sys.executable, "-c", PROXY],
            stdin=slave,
            capture_output=True,
            text=True,
            timeout=20,
            env={"PYTHONPATH": f"{ROOT}/runtime:{ROOT}/guest-agent"},
        )
    finally:
        os.close(master)
        os.close(slave)
    assert done.stdout == "b'early\\n'\n", done.stderr
