"""`sealrun attest ID`: fresh evidence of a running sandbox over a nonce, and what it is worth.

The guest is asked for evidence; `sealrun-broker verify` appraises it, against the init-data that the
sandbox was created with unless another is named, and its exit status is this command's. A tenant who
does not trust this host takes the evidence file (`--output`, `--no-verify`) and verifies it elsewhere,
with a nonce of their own.
"""

import json
import os
import subprocess
import sys
import tempfile

from sealrun_protocol.evidence import NONCE_BYTES

from sealrun_runtime import handover, installation, store
from sealrun_runtime.arguments import Invocation, Parsed, parse
from sealrun_runtime.errors import NOT_RUNNING, HostError, InvalidRequest, UsageError, cause
from sealrun_runtime.inquiry import ask
from sealrun_runtime.store import Directory

USAGE = (
    "attest [--nonce HEX] [--output FILE] [--no-verify] [--init-data FILE] "
    "[--reference-values FILE] [--collateral DIR] [--policy FILE] ID"
)

_PASSED_ON = ("reference-values", "collateral", "policy")
_OPTIONS = {name: f"{name}=" for name in ("nonce", "output", "init-data", *_PASSED_ON)}
_OPTIONS |= {"no-verify": "no-verify"}


def run(invocation: Invocation, arguments: list[str]) -> int:
    """0 where the evidence is accepted, or was only asked for; 1 where it is not."""
    parsed = parse(arguments, _OPTIONS)
    if len(parsed.operands) != 1:
        raise UsageError("attest needs a container id")
    nonce = _nonce(parsed.value("nonce"))
    directory = store.open_container(invocation.root, parsed.operands[0])
    document = json.loads(ask(directory, "attest", nonce.hex(), otherwise=NOT_RUNNING))
    evidence = json.dumps({**document, "nonce": nonce.hex()}, indent=2) + "\n"
    output = parsed.value("output")
    if output:
        _write(output, evidence)
    if not parsed.flag("no-verify"):
        return _verify(parsed, directory, nonce, evidence)
    if not output:
        sys.stdout.write(evidence)
    return 0


def _nonce(given: str) -> bytes:
    if not given:
        return os.urandom(32)
    try:
        nonce = bytes.fromhex(given)
    except ValueError as error:
        raise UsageError("--nonce is not hex") from error
    if len(nonce) not in NONCE_BYTES:
        raise UsageError(f"--nonce must have {NONCE_BYTES.start} to {NONCE_BYTES.stop - 1} bytes")
    return nonce


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as stream:
            stream.write(text)
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {cause(error)}") from error


def _verify(parsed: Parsed, directory: Directory, nonce: bytes, evidence: str) -> int:
    with tempfile.TemporaryDirectory(prefix="sealrun-attest-") as place:
        command = [installation.broker_launcher(), "verify", "-", "--nonce", nonce.hex()]
        command += _init_data(parsed.value("init-data"), directory, place)
        for name in _PASSED_ON:
            if parsed.value(name):
                command += [f"--{name}", parsed.value(name)]
        try:
            return subprocess.run(command, input=evidence.encode(), check=False).returncode
        except OSError as error:
            raise HostError(
                f"cannot verify the evidence by {command[0]}: {cause(error)}",
                remedy="take it with --no-verify --output, and verify it where the broker is",
            ) from error


def _init_data(given: str, directory: Directory, place: str) -> list[str]:
    """The options that say which init-data the evidence must be bound to."""
    if given:
        return ["--init-data", given]
    text = handover.decode(directory.read(handover.FILE)).init_data
    if not text:
        return ["--no-init-data"]
    path = os.path.join(place, "init-data.toml")
    with open(path, "wb") as stream:
        stream.write(text)
    return ["--init-data", path]
