"""The engine's log (`--log FILE --log-format text|json`), in logrus's form, which engines read.

conmon takes `msg` of the line of level `error`, and one line that is no JSON spoils it: so nothing
is ever written in another form, and nothing but errors without --debug. Imported when there is
something to log, which on the hot verbs means on failure.
"""

import posix
import sys
import time
from _json import encode_basestring_ascii

from sealrun_runtime.arguments import LOG_FLAGS
from sealrun_runtime.errors import cause, one_line


class Log:
    """Where the engine wants to read about us; an empty path means nowhere."""

    def __init__(self, path: str, form: str, *, debug: bool) -> None:
        self._path = path
        self._form = form
        self._debug = debug

    def error(self, text: str) -> None:
        """The one line that says why the call failed."""
        self._append("error", text)

    def warning(self, text: str) -> None:
        """What went wrong without making the call fail."""
        self._append("warning", text)

    def info(self, text: str) -> None:
        """What goes on; only with --debug."""
        if self._debug:
            self._append("info", text)

    def _append(self, level: str, text: str) -> None:
        if not self._path:
            return
        try:
            file = posix.open(self._path, LOG_FLAGS, 0o644)
            try:
                posix.write(file, line(self._form, level, text, time.gmtime()))
            finally:
                posix.close(file)
        except OSError as error:  # the caller still gets it on stderr
            sys.stderr.write(f"sealrun: cannot write {self._path}: {cause(error)}\n")


def line(form: str, level: str, text: str, moment: time.struct_time) -> bytes:
    """One line of the log."""
    text = encode_basestring_ascii(one_line(text.encode("utf-8", "replace").decode()))
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)
    if form == "json":
        return f'{{"msg":{text},"level":"{level}","time":"{stamp}"}}\n'.encode()
    return f'time="{stamp}" level={level} msg={text}\n'.encode()
