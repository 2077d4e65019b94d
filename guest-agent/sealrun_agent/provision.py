"""What the service needs of a real VM: its TEE, its clock, and images from registries.

Here the image room and the attestation room meet, which do not know each other: an image that is
encrypted needs keys, keys need the tenant's broker, the broker wants evidence.
"""

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Final

from sealrun_protocol.errors import ErrorCode, Phase
from sealrun_protocol.init_data import InitData

from sealrun_agent import boot, clock, disks
from sealrun_agent.attestation import event_log
from sealrun_agent.attestation.choice import Choice
from sealrun_agent.container.surroundings import Order, Rootfs
from sealrun_agent.container.workload import Program
from sealrun_agent.errors import AgentError, AttestError, DecryptError, RunError
from sealrun_agent.image.manifest import Defaults, ImageConfig
from sealrun_agent.image.policy import ImagePolicy
from sealrun_agent.image.store import Store
from sealrun_agent.machine import Machine
from sealrun_agent.policy import Policy
from sealrun_agent.processes import Processes
from sealrun_agent.shared_tree import SharedTree
from sealrun_agent.vault import Vault
from sealrun_agent.wipe import wipe

if TYPE_CHECKING:
    from sealrun_agent.attestation.kbs import KeyBroker

_DIRECTORY: Final = "/run/sealrun"


def machine() -> Machine:
    """The VM that this is. Never raises for a TEE that is there and cannot be used: the host is told
    when it configures the sandbox, and nothing is obeyed then."""
    choice = Choice()
    return Machine(
        tee=choice.tee,
        directory=_DIRECTORY,
        bind=choice.bind,
        set_hostname=socket.sethostname,
        set_clock=clock.set_first,
        follow_clock=clock.follow,
        images=lambda policy, processes: RegistryImages(policy, choice, partial(_store, processes)),
        shares=SharedTree(f"{_DIRECTORY}/host"),
        evidence=choice.evidence,
        vault=lambda init_data, dial: Vault(init_data, choice, dial),
        record=choice.record,
        load_drivers=boot.load_drivers,
        find_disk=partial(disks.number, load_drivers=boot.load_drivers),
        take_added=_take_added,
    )


def _store(processes: Processes) -> Store:
    """On the scratch disk where the VM has one, else in memory. Raises PullError."""
    from sealrun_agent import scratch

    directory = f"{_DIRECTORY}/images"
    if disk := scratch.find():
        scratch.mount(disk, directory, processes)
        return Store(directory, scratch.has_failed)
    return Store(directory)


def _take_added() -> int:
    from sealrun_agent import growth  # seldom needed

    return growth.take()


class RegistryImages:
    """Images of the host's choice, as far as the tenant allows it."""

    def __init__(self, policy: Policy, choice: Choice, make_store: Callable[[], Store]) -> None:
        """make_store: called once, before the first image is pulled; raises PullError."""
        self._policy = policy
        self._choice = choice
        self._make_store = make_store
        self._made: Store | None = None
        self._making = threading.Lock()

    @property
    def _store(self) -> Store:
        """Raises PullError."""
        with self._making:
            if self._made is None:
                self._made = self._make_store()
            return self._made

    def prepare(self, order: Order) -> Rootfs:
        """Pull, check, decrypt, unpack and mount, or take what the host shares. Raises AgentError."""
        if order.directory:
            return Rootfs(self._shared(order), "")
        from sealrun_agent.image.pull import Keys, pull

        wishes = self._policy.init_data.image
        with closing(TenantKeys(order, self._policy.init_data, self._choice)) as tenant:
            image = pull(
                order.reference,
                policy=ImagePolicy(
                    insecure_registries=self._policy.insecure_registries(order.insecure_registries),
                    ca_certificates=wishes.ca_certificates,
                    allowed=self._policy.allowed_images,
                    insecure_unpinned_keys=wishes.insecure_unpinned_keys,
                    registries=wishes.registry_config,
                    proxy=wishes.image_pull_proxy,
                    credentials_uri=wishes.authenticated_registry_credentials_uri,
                    security_policy=wishes.image_security_policy,
                    security_policy_uri=wishes.image_security_policy_uri,
                    lookaside=wishes.signature_lookaside,
                ),
                dial=order.dial,
                resolved=self._resolved,
                keys=Keys(tenant.private, tenant.resource),
                store=self._store,
                progress=order.progress,
                fetch=None if wishes.insist_on_registry else order.fetch,
            )
        path = self._store.mount(image.layers, order.container)
        try:
            return Rootfs(path, image.digest, _program(path, image.config))
        except AgentError:
            self._store.unmount(order.container)
            raise

    def release(self, container: str) -> None:
        """Unmount and remove. Raises StartError."""
        if self._made is not None:
            self._store.unmount(container)

    def check_disk(self) -> None:
        """Where a write was lost, nothing in the sandbox can rely on its files any more. Raises RunError."""
        if self._made is not None and self._made.has_failed():
            raise RunError(
                ErrorCode.SCRATCH_UNUSABLE, "the scratch disk fails: what was written is lost"
            )

    def disk(self) -> str:
        """What the store is on. Raises PullError."""
        return self._store.root

    def _shared(self, order: Order) -> str:
        """A root that the host shares. One that is to be read only is so on the host too; what a
        runtime writes into every root, mount points, then goes to a layer above it."""
        if order.readonly:
            return self._store.mount([order.directory], order.container)
        return order.directory

    def _resolved(self, reference: str, digest: str) -> None:
        said = {"digest": digest, "image": reference}
        self._choice.record(event_log.DOMAIN, "PullImage", said)


class TenantKeys:
    """What opens an order's image, from the init-data's broker, for evidence. Close it."""

    def __init__(self, order: Order, init_data: InitData, choice: Choice) -> None:
        self._order, self._init_data, self._choice = order, init_data, choice
        self._broker: KeyBroker | None = None
        self._given: list[bytes] = []

    def private(self) -> Sequence[bytes]:
        """The keys that the init-data names. Raises DecryptError where it names none, AttestError."""
        names = self._init_data.image.decryption_keys
        if not names:
            raise DecryptError(
                ErrorCode.KEY_NOT_CONFIGURED,
                f"image {self._order.reference} is encrypted, and the init-data names no key for it",
            )
        return [self.resource(name) for name in names]

    def resource(self, uri: str) -> bytes:
        """What the broker has under a kbs:/// URI. Raises AttestError."""
        if self._broker is None:
            self._broker = self._session()
        self._given.append(self._broker.resource(uri))
        return self._given[-1]

    def close(self) -> None:
        """Forget session and keys. What was given is zeros then."""
        wipe(self._given)
        if self._broker is not None:
            self._broker.close()

    def _session(self) -> "KeyBroker":
        """Nothing is sent yet."""
        from sealrun_agent.attestation.kbs import KeyBroker

        broker = self._init_data.broker
        if broker is None:
            raise AttestError(
                ErrorCode.BROKER_NOT_CONFIGURED,
                f"image {self._order.reference} needs a key or a secret, and the init-data names no key"
                " broker",
            )
        attester = self._choice.attester(self._init_data)
        self._order.progress(Phase.ATTEST, f"attesting to {broker.url}", 0, 0)
        return KeyBroker(broker, attester, self._order.dial, self._init_data)


def _program(rootfs: str, config: ImageConfig) -> Program:
    """What the image says about its process. Raises VerifyError."""
    from sealrun_agent.image.user import find_user

    said = config.config or Defaults()
    ids = find_user(rootfs, said.user or "")
    return Program(
        args=(said.entrypoint or ()) + (said.cmd or ()),
        env=said.env or (),
        cwd=said.working_dir or "/",
        uid=ids.uid,
        gid=ids.gid,
        groups=ids.groups,
        volumes=tuple(said.volumes or ()),
    )
