"""`sealrun events [--interval DURATION] [--stats] ID`: figures of a container in the shape of runc's.

With --stats one line of figures. Without, such a line at every interval until the container ends, and
a line `{"type":"oom","id":…}` for each time that more of its processes were killed for want of memory.
"""

import json
import os
import re
import select
import sys
from typing import Any, Final

from sealrun_runtime import leftovers, store
from sealrun_runtime.arguments import Invocation, container_id, parse
from sealrun_runtime.errors import NOT_RUNNING, NotFound, UsageError, WrongState
from sealrun_runtime.inquiry import ask

USAGE = "events [--interval DURATION] [--stats] ID"

OPTIONS = {"stats": "stats", "interval": "interval="}
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+")
_PART: Final = re.compile(r"([0-9.]+)(ms|s|m|h)")
_SHORTEST: Final = 0.01


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Raises WrongState where the container has stopped already."""
    parsed = parse(arguments, OPTIONS)
    container = container_id("events", parsed)
    interval = seconds(parsed.value("interval", "5s"))
    directory = store.open_container(invocation.root, container)
    if parsed.flag("stats"):
        _tell(container, "stats", _figures(directory))
        return 0
    _follow(directory, interval)
    return 0


def seconds(text: str) -> float:
    """A duration as Go writes it: `5s`, `100ms`, `1m30s`. Raises UsageError."""
    if not _DURATION.fullmatch(text):
        raise UsageError(f"option --interval takes a duration such as 5s, not {text}")
    duration = sum(float(amount) * _UNITS[unit] for amount, unit in _PART.findall(text))
    if duration < _SHORTEST:
        raise UsageError("duration interval must be greater than 0")
    return duration


def _follow(directory: store.Directory, interval: float) -> None:
    """The stand-in's end is the container's: nobody polls for it."""
    figures = _figures(directory)
    try:
        stand_in = leftovers.find(directory, leftovers.STAND_IN_ROLE)
    except NotFound:
        raise WrongState(NOT_RUNNING) from None
    poller = select.poll()
    poller.register(stand_in, select.POLLIN)
    killed = 0
    try:
        while True:
            _tell(directory.container, "stats", figures)
            killed = _tell_of_kills(directory.container, killed, figures)
            if poller.poll(interval * 1000):
                break
            figures = _figures(directory)
    except WrongState:  # it ended between two looks
        pass
    finally:
        os.close(stand_in)
    if killed == 0 and _ended_by_kill(directory):
        _tell(directory.container, "oom", None)


def _figures(directory: store.Directory) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(ask(directory, "stats", otherwise=NOT_RUNNING))
    return figures


def _tell_of_kills(container: str, before: int, figures: dict[str, Any]) -> int:
    raw = figures.get("memory", {}).get("raw") or {}
    now = int(raw.get("oom_kill", 0))
    if now > before:
        _tell(container, "oom", None)
    return max(before, now)


def _ended_by_kill(directory: store.Directory) -> bool:
    """What the shim noted in the final state."""
    content = directory.read(store.STATE)
    annotations = json.loads(content).get("annotations") or {} if content else {}
    return annotations.get("io.sealrun.oom") == "true"


def _tell(container: str, kind: str, data: object) -> None:
    event = {"type": kind, "id": container} | ({"data": data} if data is not None else {})
    sys.stdout.write(json.dumps(event, separators=(",", ":")) + "\n")
    sys.stdout.flush()
