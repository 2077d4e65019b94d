"""`shim.json`: everything that `create` resolved and the shim needs, written once, never changed.

Beside it in the state directory lies `oci.json`, the bundle's config.json byte for byte as it was
validated: the shim sends that to the guest and never reads the bundle again, which its owner could
have changed in between.
"""

from typing import Final

import msgspec
from sealrun_protocol.volume import Volume

from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.pod import Pod
from sealrun_runtime.settings import Config
from sealrun_runtime.store import Directory

FILE: Final = "shim.json"
OCI_CONFIG_FILE: Final = "oci.json"
VERSION: Final = 1


class Handover(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the shim of one sandbox starts from, and what each container that comes later is made by.

    container: the parts of config.json that the host acts upon.
    image: the image's reference (registry/repository@digest or :tag); image_source says who named it.
    init_data: the exact TOML text (base64 in the file); empty where no tenant gave one.
    init_data_digest: by the algorithm that it names. accepted_tees: those that it may be used with, by
    name; empty: any, or none.
    guest_image: absolute path of the guest image's directory, `config.guest.image` resolved.
    debug: --debug was given.
    bus: of the systemd that makes the container's scope (cgroup_driver.py); empty: directories by hand.
    pod: the container's part in one; None where it stands alone.
    volumes: mounts (by index) that are the guest's own, whatever their sources.
    """

    version: int = VERSION
    id: str
    container: ContainerSpec
    image: str
    image_source: str
    init_data: bytes
    init_data_digest: bytes = b""
    accepted_tees: tuple[str, ...] = ()
    guest_image: str
    config: Config
    debug: bool = False
    bus: str = ""
    pod: Pod | None = None
    volumes: dict[int, Volume] = {}

    @property
    def idle(self) -> bool:
        """Whether the container runs nothing in the guest."""
        return self.pod is not None and self.pod.idle


def encode(handover: Handover) -> bytes:
    """The content of shim.json."""
    return msgspec.json.encode(handover)


def read(directory: Directory) -> tuple[Handover, bytes]:
    """What lies in a container's directory, and its config.json. Raises as `decode`."""
    return decode(directory.read(FILE)), directory.read(OCI_CONFIG_FILE)


def decode(content: bytes) -> Handover:
    """Raises msgspec.DecodeError: our own file, so that is a bug or a mixed installation."""
    return msgspec.json.decode(content, type=Handover)
