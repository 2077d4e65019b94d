"""The calls of Cloud Hypervisor's REST interface that we make (its OpenAPI file, version 0.3.0).

Of its status codes only success counts: which other one a failure gets has changed between releases.
The body of a failure is a JSON array of texts, the chain of causes, outermost first.
"""

import socket
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from sealrun_vmm import process
from sealrun_vmm.cloud_hypervisor import http
from sealrun_vmm.cloud_hypervisor.program import Build

_ROOT: Final = "/api/v1/"
_OK: Final = range(200, 300)


class ApiError(Exception):
    """A call that failed. The text ends a sentence that names Cloud Hypervisor as its subject."""


class Refused(ApiError):
    """It was answered, with the reason. Any other failure leaves nobody to talk to."""


class _Ping(msgspec.Struct, frozen=True):
    """Of what it answers, what a Build holds."""

    version: str
    features: frozenset[str] = frozenset()


class _Info(msgspec.Struct, frozen=True):
    """Of what it tells of the VM, what is looked at."""

    memory_actual_size: int


class _Range(msgspec.Struct, frozen=True):
    base: int
    size: int


class _Resource(msgspec.Struct, frozen=True):
    """Of the kinds of resources that a device may have, the one that is looked at."""

    range: _Range | None = msgspec.field(name="MmioAddressRange", default=None)


class _Node(msgspec.Struct, frozen=True):
    resources: tuple[_Resource, ...] = ()


class _Tree(msgspec.Struct, frozen=True):
    """Of what it tells of the VM, the devices, by their names."""

    device_tree: dict[str, msgspec.Raw]


class Api:
    """One VMM's interface. Each call may raise ApiError; how long it may take is the caller's."""

    def __init__(self, endpoint: socket.socket) -> None:
        self._connection = http.Connection(endpoint)
        self._under_way = ""

    @property
    def under_way(self) -> str:
        """The call that waits, or waited, for an answer."""
        return self._under_way

    def close(self) -> None:
        """No call works any more."""
        self._connection.close()

    async def ping(self) -> Build:
        """Ask whether it is there, and what it is."""
        body = await self._call("GET", "vmm.ping")
        try:
            ping = msgspec.json.decode(body, type=_Ping)
            return Build(ping.version, ping.features)
        except msgspec.DecodeError as error:
            raise ApiError("gave an answer to vmm.ping that cannot be read") from error

    async def create(self, config: Mapping[str, object]) -> None:
        """Give it the VmConfig. It is validated and kept; no VM exists yet."""
        await self._call("PUT", "vm.create", config)

    async def add_net(self, config: Mapping[str, object], tap: int) -> None:
        """Add a NetConfig on an open tap device."""
        await self._call("PUT", "vm.add-net", config, [tap])

    async def add_disk(self, config: Mapping[str, object]) -> None:
        """Add a DiskConfig to the running VM."""
        await self._call("PUT", "vm.add-disk", config)

    async def add_pmem(self, config: Mapping[str, object]) -> None:
        """Add a PmemConfig to the running VM."""
        await self._call("PUT", "vm.add-pmem", config)

    async def remove_device(self, name: str) -> None:
        """Take a device out of the running VM."""
        await self._call("PUT", "vm.remove-device", {"id": name})

    async def boot(self) -> None:
        """Start the VM."""
        await self._call("PUT", "vm.boot")

    async def resize(self, *, cpus: int | None = None, memory: int | None = None) -> None:
        """Make the running VM so large; None: leave it, since memory that is asked for twice is
        refused. memory: bytes, what the VM was booted with and a multiple of 2 MiB."""
        wanted = {"desired_vcpus": cpus, "desired_ram": memory}
        changes = {name: value for name, value in wanted.items() if value is not None}
        await self._call("PUT", "vm.resize", changes)

    async def memory(self) -> int:
        """Bytes that the guest has, without what it has not taken yet of what was added."""
        body = await self._call("GET", "vm.info")
        try:
            return msgspec.json.decode(body, type=_Info).memory_actual_size
        except msgspec.DecodeError as error:
            raise ApiError("gave an answer to vm.info that cannot be read") from error

    async def address(self, name: str) -> int:
        """Where in the guest's physical memory the memory of a device begins."""
        body = await self._call("GET", "vm.info")
        try:
            found = msgspec.json.decode(body, type=_Tree).device_tree[name]
            resources = msgspec.json.decode(found, type=_Node).resources
            return next(one.range.base for one in resources if one.range is not None)
        except (msgspec.DecodeError, KeyError, StopIteration) as error:
            text = f"gave an answer to vm.info that does not say where {name} lies"
            raise ApiError(text) from error

    async def shut_down(self) -> None:
        """End the VM and the VMM."""
        await self._call("PUT", "vmm.shutdown")

    async def _call(
        self,
        method: str,
        name: str,
        argument: Mapping[str, object] | None = None,
        descriptors: Sequence[int] = (),
    ) -> bytes:
        self._under_way = name
        body = b"" if argument is None else msgspec.json.encode(argument)
        try:
            answer = await self._connection.request(method, _ROOT + name, body, descriptors)
        except http.Garbled as error:
            raise ApiError(f"gave no answer to {name}: {error}") from error
        except OSError as error:
            raise ApiError(f"gave no answer to {name}: {error.strerror}") from error
        if answer.status not in _OK:
            raise Refused(f"refused {name}: {_chain(answer)}")
        return answer.body


def _chain(answer: http.Answer) -> str:
    """The causes in one line; the outermost says only that the interface failed."""
    try:
        texts = msgspec.json.decode(answer.body, type=list[str])
    except msgspec.DecodeError:
        texts = []
    return process.printable(": ".join(texts[1:] or texts)) or f"status {answer.status}"
