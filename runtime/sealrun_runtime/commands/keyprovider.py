"""`sealrun keyprovider`: an ocicrypt key provider, which skopeo runs once for each layer.

OCICRYPT_KEYPROVIDER_CONFIG names a file:

    {"key-providers": {"attestation-agent": {"cmd": {"path": "/usr/local/bin/sealrun",
     "args": ["keyprovider", "--keys", "DIRECTORY", "--broker", "URL", "--admin-key", "FILE"]}}}}
"""

import os
import sys
from typing import Final

from sealrun_runtime import named_file
from sealrun_runtime.arguments import Invocation, Parsed, parse
from sealrun_runtime.errors import HostError, InvalidRequest, UsageError, cause
from sealrun_runtime.keyprovider import exchange
from sealrun_runtime.keyprovider.exchange import RequestInvalid
from sealrun_runtime.keyprovider.keys import Broker, KeyStore

USAGE = "keyprovider [--keys DIR] [--broker URL --admin-key FILE [--ca FILE]] [--name NAME]"

OPTIONS: Final = {
    "keys": "keys=",
    "broker": "broker=",
    "admin-key": "admin-key=",
    "ca": "ca=",
    "name": "name=",
}
_REQUEST_BYTES: Final = 1 << 20
_KEY_BYTES: Final = 64 << 10  # of an administrator's key, PEM


def run(_invocation: Invocation, arguments: list[str]) -> int:
    """Answer one request. Raises InvalidRequest."""
    parsed = parse(arguments, OPTIONS)
    if parsed.operands:
        raise UsageError(f"keyprovider: unexpected operand {parsed.operands[0]}")
    try:
        keys = KeyStore(parsed.value("keys"), _broker(parsed))
        request = sys.stdin.buffer.read(_REQUEST_BYTES)
        answer = exchange.answer(request, keys, parsed.value("name", exchange.PROVIDER))
    except RequestInvalid as error:
        raise InvalidRequest(f"cannot serve ocicrypt: {error}") from error
    sys.stdout.write(answer.decode())
    return 0


def _broker(parsed: Parsed) -> Broker | None:
    url, path = parsed.value("broker"), parsed.value("admin-key")
    if not url:
        return None
    if not path:
        raise UsageError("keyprovider: --broker needs --admin-key FILE")
    try:
        key = named_file.read(path, _KEY_BYTES, pipe=True)
    except OSError as error:
        raise HostError(f"cannot read {os.path.abspath(path)}: {cause(error)}") from error
    return Broker(url, key, parsed.value("ca"))
