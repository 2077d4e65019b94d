"""`sealrun cache list|size|prune`: what this host keeps of the images that its guests asked for."""

import json
import sys
import time
from typing import Final

from sealrun_runtime import config
from sealrun_runtime.arguments import Invocation, parse
from sealrun_runtime.cache.store import Cache
from sealrun_runtime.errors import HostError, UsageError, cause

USAGE = "cache list [--format table|json] | cache size | cache prune [--size MIB]"

OPTIONS: Final = {"format": "format=", "f": "format=", "size": "size="}
_MIB: Final = 1 << 20


def run(_invocation: Invocation, arguments: list[str]) -> int:
    """Show it, or make it smaller. Raises HostError."""
    parsed = parse(arguments, OPTIONS)
    if len(parsed.operands) != 1 or parsed.operands[0] not in ("list", "size", "prune"):
        raise UsageError("cache: say list, size or prune")
    form, size = parsed.value("format", "table"), parsed.value("size", "0")
    if form not in ("table", "json"):
        raise UsageError(f"invalid format {form}: it is table or json")
    if not (size.isascii() and size.isdigit()):
        raise UsageError(f"invalid size {size}: it is a number of MiB")
    settings = config.build(config.resolve(config.files(), {})).cache
    try:
        cache = Cache(settings.directory, settings.size * _MIB)
        if parsed.operands[0] == "prune":
            sys.stdout.write(f"{cache.prune(int(size) * _MIB)} bytes are free now\n")
        elif parsed.operands[0] == "size":
            sys.stdout.write(f"{cache.size()}\n")
        else:
            sys.stdout.write(_json(cache) if form == "json" else _table(cache))
    except OSError as error:
        raise HostError(f"cannot use the cache in {settings.directory}: {cause(error)}") from error
    return 0


def _json(cache: Cache) -> str:
    entries = [{"digest": e.digest, "size": e.size, "used": e.used} for e in cache.entries()]
    return json.dumps(entries) + "\n"


def _table(cache: Cache) -> str:
    lines = [f"{'DIGEST':<71} {'BYTES':>14}  USED"]
    for entry in cache.entries():
        used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.used))
        lines.append(f"{entry.digest:<71} {entry.size:>14}  {used}")
    return "\n".join(lines) + "\n"
