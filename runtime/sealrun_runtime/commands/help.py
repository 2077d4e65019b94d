"""`sealrun --help`, `sealrun VERB --help`, `sealrun --version`."""

import sys

from sealrun_runtime.arguments import Invocation
from sealrun_runtime.cli import NO_CHECKPOINTS, UNSUPPORTED, VERBS
from sealrun_runtime.errors import UsageError
from sealrun_runtime.version import OCI_VERSION_MAX, VERSION

USAGE = "help"

_INTRODUCTION = """\
sealrun runs each OCI container in a confidential micro-VM of its own.

usage: sealrun [--root DIR] [--log FILE] [--log-format text|json] [--debug] COMMAND …
       sealrun --version

commands:
"""
_EPILOGUE = """
checkpoint and restore are not supported. --rootless and --criu are accepted as runc's and have no effect.
--systemd-cgroup has systemd make the VM's control group; --cgroup-manager is systemd, cgroupfs or disabled.
The settings stand in /etc/sealrun/sealrun.toml; `sealrun config` shows them all.
"""


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Print what was asked for."""
    if arguments == ["--version"]:
        sys.stdout.write(f"sealrun version {VERSION}\nspec: {OCI_VERSION_MAX}\n")
        return 0
    if arguments:
        verb = arguments[0]
        if verb in UNSUPPORTED:
            raise UsageError(f"{verb} {NO_CHECKPOINTS}")
        if verb not in VERBS:
            raise UsageError(f"unknown command {verb}", remedy="see sealrun --help")
        sys.stdout.write(f"usage: sealrun {_usage(verb)}\n")
        return 0
    sys.stdout.write(_INTRODUCTION)
    for verb in VERBS:
        sys.stdout.write(f"  {_usage(verb)}\n")
    sys.stdout.write(_EPILOGUE)
    return 0


def _usage(verb: str) -> str:
    module = __import__(f"sealrun_runtime.commands.{VERBS[verb]}", fromlist=["USAGE"])
    usage: str = module.USAGE
    return usage
