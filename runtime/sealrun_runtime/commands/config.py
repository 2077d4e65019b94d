"""`sealrun config [--defaults]`: the settings as they hold on this machine, each with its origin."""

import sys

from sealrun_runtime import config
from sealrun_runtime.arguments import Invocation, parse
from sealrun_runtime.errors import UsageError

USAGE = "config [--defaults]"

OPTIONS = {"defaults": "defaults"}


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Print a sealrun.toml; with --defaults the one that is shipped."""
    parsed = parse(arguments, OPTIONS)
    if parsed.operands:
        raise UsageError(f"config: unexpected operand {parsed.operands[0]}")
    if parsed.flag("defaults"):
        sys.stdout.write(config.shipped_document())
        return 0
    layers = config.resolve(config.files(), {})
    config.build(layers)
    sys.stdout.write(config.document(layers, origins=True))
    return 0
