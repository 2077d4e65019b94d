"""Cloud Hypervisor's own description of its REST interface, as a judge over requests and answers.

The file is not ours and not in this repository; where it is not there, nothing is judged, and
`SPECIFICATION` is None. It describes less than the program takes: `GAPS` lists what is known to be
missing. Beyond that a member that the description does not name is an error, since the program
ignores such members silently.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_FILE = ROOT.parent / "shared/reference/cloud-hypervisor-openapi.yaml"
SPECIFICATION = _FILE if _FILE.is_file() else None

# Of v54-dev. The members of DiskConfig are "for testing use only. Not exposed in API", and answered.
GAPS: dict[str, dict[str, Any]] = {
    "PayloadConfig": {"fw_cfg_config": {"type": "object"}},
    "NetConfig": {"fds": {"type": "array", "items": {"type": "integer"}}},
    "DiskConfig": {"disable_io_uring": {"type": "boolean"}, "disable_aio": {"type": "boolean"}},
    "CpusConfig": {"profile": {"type": "string"}},
    "DeviceNode": {"parent": {"type": "string"}},
}
UNLISTED_SUCCESS = {"vmm.shutdown": 200}  # where the description says 204
# What the program answers to every failure, whatever the description says of the call.
UNLISTED_STATUS = {400, 404, 409, 429, 500}


class Violation(Exception):
    """A request or an answer that the description does not allow."""


def check_request(method: str, name: str, body: bytes) -> None:
    """Raises Violation. name: as "vm.create". body: empty where there is none."""
    if SPECIFICATION is None:
        return
    operation = _operation(method, name)
    wanted = operation.get("requestBody")
    if wanted is None:
        if body:
            raise Violation(f"{name} takes no body")
        return
    _judge(wanted["content"]["application/json"]["schema"], body, f"the body of {name}")


def check_answer(method: str, name: str, status: int, body: bytes) -> None:
    """Raises Violation."""
    if SPECIFICATION is None:
        return
    responses = {int(code): entry for code, entry in _operation(method, name)["responses"].items()}
    if status not in {*responses, *UNLISTED_STATUS, UNLISTED_SUCCESS.get(name)}:
        raise Violation(f"{name} does not answer with {status}")
    content = responses.get(status, {}).get("content")
    if content is not None:
        _judge(content["application/json"]["schema"], body, f"the answer to {name}", told=True)
    elif status >= 400:
        _judge({"type": "array", "items": {"type": "string"}}, body, f"the failure of {name}")
    elif body:
        raise Violation(f"{name} answers with no body")


@cache
def _document() -> dict[str, Any]:
    import yaml

    assert SPECIFICATION is not None
    document: dict[str, Any] = yaml.load(SPECIFICATION.read_bytes(), Loader=yaml.CSafeLoader)
    for name, members in GAPS.items():
        document["components"]["schemas"][name]["properties"] |= members
    _close(document["components"])
    return document


def _close(node: Any) -> None:
    """Let no object have members that are not listed."""
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict) and node.get("type") == "object":
            node.setdefault("additionalProperties", False)
        for child in node.values():
            _close(child)
    elif isinstance(node, list):
        for child in node:
            _close(child)


def _operation(method: str, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = _document()["paths"][f"/{name}"][method.lower()]
    except KeyError as error:
        raise Violation(f"there is no {method} {name}") from error
    return found


def _present(members: dict[str, Any]) -> dict[str, Any]:
    """v52.0 says null of what a VM has not; v54-dev leaves it out, as the description has it."""
    return {name: value for name, value in members.items() if value is not None}


def _judge(schema: dict[str, Any], body: bytes, what: str, *, told: bool = False) -> None:
    import jsonschema

    try:
        value = json.loads(body, object_hook=_present if told else None)
    except ValueError as error:
        raise Violation(f"{what} is no JSON") from error
    # The references in it lead into the whole document.
    validator = jsonschema.Draft7Validator({**schema, "components": _document()["components"]})
    found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
    if found:
        raise Violation(f"{what}: {'; '.join(found)}")
