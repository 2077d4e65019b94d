"""The kernel's report interface (configfs-tsm) on ordinary files.

The kernel makes a report's attributes when its directory is made; a plain file system does not, so
that `os.mkdir` and `os.rmdir` are stood in for below `reports`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock


@contextmanager
def reports(
    directory: Path, provider: str, quote: Callable[[bytes], bytes], auxiliary: bytes = b""
) -> Iterator[list[bytes]]:
    """Gives the inputs of all reports that were asked for. quote: the output for an input."""
    directory.mkdir(parents=True, exist_ok=True)
    asked: list[bytes] = []
    make, remove, plain_open = os.mkdir, os.rmdir, open

    def mkdir(path: str, mode: int = 0o777) -> None:
        make(path, mode)
        if Path(path).parent == directory:
            for name, content in (("provider", f"{provider}\n".encode()), ("generation", b"0\n")):
                Path(path, name).write_bytes(content)
            Path(path, "inblob").touch()
            if auxiliary:
                Path(path, "auxblob").write_bytes(auxiliary)

    def rmdir(path: str) -> None:
        for attribute in Path(path).iterdir() if Path(path).parent == directory else ():
            attribute.unlink()
        remove(path)

    def opened(path: object, *arguments: object, **options: object) -> object:
        if str(path).endswith("/outblob") and Path(str(path)).parent.parent == directory:
            asked.append(Path(str(path)).with_name("inblob").read_bytes())
            Path(str(path)).write_bytes(quote(asked[-1]))
        return plain_open(path, *arguments, **options)  # type: ignore[call-overload]

    with (
        mock.patch("os.mkdir", mkdir),
        mock.patch("os.rmdir", rmdir),
        mock.patch("sealrun_agent.attestation.tsm.open", opened, create=True),
    ):
        yield asked
