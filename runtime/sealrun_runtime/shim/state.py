"""The container's OCI state document (runtime-spec, "State"), and its atomic replacement on disk.

`create` wrote the first, "creating"; every later one is written here. `state` copies its bytes, so
the members stand in the order that store.py promises.
"""

from enum import StrEnum
from typing import Final

import msgspec

from sealrun_runtime.store import STATE, Directory

OCI_VERSION: Final = "1.0.2"

# What we say of a container, beside the annotations that it was created with.
IMAGE: Final = "io.sealrun.image"
IMAGE_DIGEST: Final = "io.sealrun.image.digest"
TEE: Final = "io.sealrun.tee"
VMM: Final = "io.sealrun.vmm"
EXIT_CODE: Final = "io.sealrun.exit-code"
EXIT_REASON: Final = "io.sealrun.exit-reason"
OOM: Final = "io.sealrun.oom"
ROOT: Final = "io.sealrun.root"


class Status(StrEnum):
    """The runtime-spec's words."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class State(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The document. pid: the stand-in's while there is a program, else 0."""

    oci_version: str = OCI_VERSION
    id: str
    status: Status
    pid: int
    bundle: str
    annotations: dict[str, str]


def encode(state: State) -> bytes:
    """Compact JSON, members in the order of the class."""
    return msgspec.json.encode(state) + b"\n"


def write(directory: Directory, state: State) -> None:
    """Replace state.json. Raises OSError."""
    directory.write(STATE, encode(state))
