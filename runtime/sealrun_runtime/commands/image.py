"""`sealrun image stub REFERENCE`: let an engine run an image that this host never downloads."""

import sys
from typing import Final

from sealrun_runtime import config, stub
from sealrun_runtime.arguments import Invocation, parse
from sealrun_runtime.errors import UsageError

USAGE = "image stub [--containerd] [--tls-verify=false] [--authfile FILE] REFERENCE"

OPTIONS: Final = {"containerd": "containerd", "tls-verify": "tls-verify=", "authfile": "authfile="}


def run(_invocation: Invocation, arguments: list[str]) -> int:
    """Write it into the engine's storage, and its name to stdout. Raises InvalidRequest, HostError."""
    parsed = parse(arguments, OPTIONS)
    if len(parsed.operands) != 2 or parsed.operands[0] != "stub":
        raise UsageError("image: say stub and one image reference")
    verify = parsed.value("tls-verify", "true")
    if verify not in ("true", "false"):
        raise UsageError(f"invalid value {verify} of --tls-verify: it is true or false")
    reference = parsed.operands[1]
    settings = config.build(config.resolve(config.files(), {}))
    registry = reference.partition("/")[0]
    made = stub.make(
        reference,
        insecure=verify == "false" or registry in settings.image.insecure_registries,
        authfile=parsed.value("authfile", settings.cache.authfile),
        containerd=parsed.flag("containerd"),
    )
    sys.stdout.write(f"{made.name}\n")
    return 0
