"""What containers and their programs need of the sandbox around them, and give back to it."""

import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple, Protocol

from sealrun_protocol.errors import Phase

from sealrun_agent.container.crun import Crun
from sealrun_agent.container.sealed import Unseal
from sealrun_agent.container.spec import OwnVolume
from sealrun_agent.container.worker import Attempt
from sealrun_agent.container.workload import Program, Tenant
from sealrun_agent.dial import Dial
from sealrun_agent.errors import AgentError
from sealrun_agent.loop import Loop
from sealrun_agent.streams import Post, Streams
from sealrun_agent.tunnel import Tunnels


class Success(NamedTuple):
    """A request was carried out. Members as of messages.Done."""

    image_digest: str = ""
    document: bytes = b""


DONE: Final = Success()

Answer = Callable[[AgentError | Success], None]
"""The reply to a request."""


class Order(NamedTuple):
    """What a container needs for a root file system. directory: where it is, if the host shares it;
    else it is that of the image `reference`. progress: (phase, text, done bytes, total bytes); it
    raises AgentError where the container is not wanted any more. dial: for registry and broker.
    fetch: what the host's cache has of the image, by digest; raises DialFailed. None: it has none."""

    container: str
    reference: str
    insecure_registries: tuple[str, ...]
    dial: Dial
    progress: Callable[[Phase, str, int, int], None]
    directory: str = ""
    readonly: bool = False
    fetch: Callable[[str], socket.socket] | None = None


class Rootfs(NamedTuple):
    """A mounted root file system, and of the image that it was made from the manifest's digest and
    the program; None where it is not an image's."""

    path: str
    image_digest: str
    program: Program | None = None


class Images(Protocol):
    """Where root file systems come from. Called by workers."""

    def prepare(self, order: Order) -> Rootfs:
        """Pull, check and mount, or take what the host shares. Raises AgentError, and leaves nothing
        behind then."""

    def release(self, container: str) -> None:
        """Unmount and remove; nothing where it was not prepared. Raises AgentError."""

    def check_disk(self) -> None:
        """Raises AgentError where the disk that they are on has failed."""

    def disk(self) -> str:
        """The directory of the disk that they are on. Raises AgentError where it cannot be used."""


class Shares(Protocol):
    """What the host shares with the sandbox. Called by workers."""

    def take(self, container: str, names: Iterable[str]) -> str:
        """The directory in which each name of a container's is what the host shares by it. Raises
        StartError, and leaves nothing behind then."""

    def release(self, container: str) -> None:
        """Let go of it; nothing where it was not taken. Raises StartError."""


class Volumes(Protocol):
    """Directories of the sandbox's own that containers have mounted. Called by workers."""

    def take(self, container: str, wanted: Mapping[str, OwnVolume], rootfs: str) -> dict[str, str]:
        """The directories of volumes; each is made when it is first asked for, and stays. rootfs: of the
        container, for what begins as a copy. Raises AgentError, and leaves nothing behind then."""

    def settle(self, container: str) -> None:
        """The container has mounted them: let go of what only led there. Raises StartError."""

    def give_up(self, container: str) -> None:
        """The container did not come into being: remove what was made for it alone. Raises StartError."""


class Namespaces(Protocol):
    """What the containers of the sandbox can share. Called by workers."""

    def take(self, kinds: Collection[str], shm_bytes: int) -> str:
        """The directory in which each kind lies as a file, and shm with ipc. Raises StartError."""


class Surroundings(NamedTuple):
    """What all containers of the sandbox have in common. directory: for bundles. tenant: None where
    no tenant asked for protection.

    progress: (container, phase, text, done bytes, total bytes), any thread. decided: is told what the
    tenant's policy said to a wish of the host's (what, allowed), any thread; raises AgentError where it
    cannot be recorded, and then nothing may come of the wish. unseal: the value of a sealed secret.
    find_disk: major and minor of the VM's disk of a serial; called by workers, raises StartError."""

    events: Loop
    streams: Streams
    tunnels: Tunnels
    crun: Crun
    images: Images
    shares: Shares
    volumes: Volumes
    find_disk: Callable[[str], tuple[int, int]]
    namespaces: Namespaces
    directory: str
    post: Post
    progress: Callable[[str, Phase, str, int, int], None]
    attempt: Attempt
    unseal: Unseal
    tenant: Tenant | None = None
    decided: Callable[[str, bool], None] = lambda _what, _allowed: None
