"""Python sources to bytecode that is the same whenever the sources are.

The order inside a frozenset constant follows the hash seed, and marshal marks objects by how often
they are referenced: so a fresh interpreter with a fixed seed compiles everything, in sorted order.
The files carry unchecked hashes (PEP 552): the guest has no sources to compare them with. Column
positions are left out: a quarter of each file, for carets under lines of source that are not there.
"""

import importlib.util
import marshal
import os
import subprocess
import sys
from typing import NamedTuple

from sealrun_guest_image.errors import BuildError

_UNCHECKED_HASH = 0b01.to_bytes(4, "little")


class Source(NamedTuple):
    """One module. `path`: what tracebacks shall name. `level`: 0 keeps asserts and docstrings, 2
    drops both."""

    path: str
    data: bytes
    level: int


def compile_all(sources: list[Source]) -> list[bytes]:
    """The .pyc file of each source. Raises BuildError."""
    # -B: this runs as root from a checkout that is not root's.
    command = [sys.executable, "-B", "-sSP", "-W", "ignore", "-X", "no_debug_ranges", __file__]
    result = subprocess.run(
        command,
        input=marshal.dumps([tuple(source) for source in sources]),
        capture_output=True,
        env={"PYTHONHASHSEED": "0", "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))},
        check=False,
    )
    if result.returncode != 0:
        last = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise BuildError(f"cannot compile the guest's Python modules: {last}")
    compiled: list[bytes] = marshal.loads(result.stdout)  # noqa: S302 - our own child's
    return compiled


def _compile(source: Source) -> bytes:
    code = compile(source.data, source.path, "exec", dont_inherit=True, optimize=source.level)
    header = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + importlib.util.source_hash(source.data)
    return header + marshal.dumps(code)


if __name__ == "__main__":
    given = [Source(*fields) for fields in marshal.load(sys.stdin.buffer)]  # noqa: S302
    sys.stdout.buffer.write(marshal.dumps([_compile(source) for source in given]))
