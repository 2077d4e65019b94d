"""What a registry's refusals mean: statuses to errors, its own words as one printable line."""

import time
from typing import Final

import msgspec
from sealrun_protocol import limits
from sealrun_protocol.decoding import from_json
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import PullError
from sealrun_agent.image.connection import Broken
from sealrun_agent.image.http_client import Exchange
from sealrun_agent.image.retry import retry_after

_BODY_BYTES: Final = 64 * limits.KIB
_CODES: Final = {
    401: ErrorCode.REGISTRY_DENIED,
    403: ErrorCode.REGISTRY_DENIED,
    404: ErrorCode.IMAGE_NOT_FOUND,
}


class _Error(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: tuple[_Error, ...] = ()


def refusal(exchange: Exchange, what: str) -> PullError | Broken:
    """The error for a status that is no success; Broken where asking again may help."""
    status = exchange.response.status
    text = f"{exchange.connection.endpoint} answers {status}{_reason(exchange)}"
    if status == 429 or status >= 500:
        header = exchange.response.getheader("Retry-After", "")
        code = ErrorCode.REGISTRY_BUSY if status == 429 else ErrorCode.REGISTRY_UNREACHABLE
        seconds = retry_after(header, time.time())
        if seconds:
            text += f", and asks to wait {seconds:.0f} s"
        return Broken(code, text, seconds)
    code = _CODES.get(status, ErrorCode.REGISTRY_PROTOCOL)
    return PullError(code, f"cannot fetch {what}: {text}")


def _reason(exchange: Exchange) -> str:
    """What the registry says of its refusal."""
    try:
        errors = from_json(exchange.body(_BODY_BYTES) or b"", _Errors).errors
    except (Broken, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if not errors:
        return ""
    return f" ({ascii(f'{errors[0].code}: {errors[0].message}'[:160])[1:-1]})"
