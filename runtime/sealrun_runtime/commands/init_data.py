"""`sealrun init-data FILE`: check a tenant's init-data and print it as the annotation carries it."""

import sys

from sealrun_protocol import init_data, limits

from sealrun_runtime import named_file
from sealrun_runtime.arguments import Invocation, parse
from sealrun_runtime.errors import InvalidRequest, UsageError, cause

USAGE = "init-data FILE"


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Print base64(gzip(TOML)) on one line."""
    parsed = parse(arguments, {})
    if len(parsed.operands) != 1:
        raise UsageError("init-data needs one file")
    path = parsed.operands[0]
    try:
        text = named_file.read(path, limits.INIT_DATA_BYTES, pipe=True)
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {cause(error)}") from error
    try:
        init_data.parse(text)
    except init_data.InitDataInvalid as error:
        raise InvalidRequest(f"cannot use {path}: {error}") from error
    sys.stdout.write(init_data.encode_annotation(text) + "\n")
    return 0
