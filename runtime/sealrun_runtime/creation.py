"""What `create` and `run` share: from the command line to a container in the state "created".

Everything that can be refused is refused before anything is made. From then on, whatever goes wrong,
a signal too, leaves nothing behind: processes, cgroups, directory.
"""

import array
import os
import sys
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec
from sealrun_protocol import limits

from sealrun_runtime import (
    block_devices,
    bundle,
    cgroup_driver,
    config,
    hooks,
    image_reference,
    installation,
    joining,
    leftovers,
    open_files,
    pid_file,
    sharing,
    shim_process,
    store,
    volumes,
)
from sealrun_runtime import handover as handing
from sealrun_runtime import pod as pods
from sealrun_runtime import stand_in as standing
from sealrun_runtime.arguments import Invocation
from sealrun_runtime.client import ANSWER_SECONDS, Connection
from sealrun_runtime.commands import delete
from sealrun_runtime.errors import (
    HOST_KINDS,
    HostError,
    InvalidRequest,
    Reported,
    SealrunError,
    cause,
    one_line,
)
from sealrun_runtime.interruption import hold_back, interruptible
from sealrun_runtime.log import Log
from sealrun_runtime.terminal import Size, Terminal, own_size

if TYPE_CHECKING:
    from sealrun_protocol.init_data import InitData

HOST_NETWORK_REMEDY: Final = (
    "give the container a network of its own (--network bridge, slirp4netns, pasta or none)"
)
PATIENCE: Final = 10.0  # seconds for a shim whose create was called off to take its sandbox down


class Prepared(NamedTuple):
    """What the command line asked for, read and found valid; nothing was made yet."""

    handover: handing.Handover
    oci_config: bytes
    plan: sharing.Plan


class Created(NamedTuple):
    """A container in the state "created"; its stand-in is a child of this process. terminal: where
    it has one, and no engine took the master."""

    directory: store.Directory
    stand_in: int
    terminal: Terminal | None


def prepare(invocation: Invocation, container_id: str, bundle_path: str) -> Prepared:
    """Read the bundle, the settings and the image's name. Raises InvalidRequest, ConfigError,
    HostError."""
    _check_id(container_id)
    if os.geteuid() != 0:
        raise HostError(
            f"cannot create a container as user {os.geteuid()}",
            remedy="run as root, or as root of a user namespace, as rootless Podman does",
        )
    container, oci_config = bundle.read(bundle_path)
    container, bus = cgroup_driver.choose(invocation.cgroup_manager, container, container_id)
    if not any(one.type == "network" for one in container.namespaces):
        raise InvalidRequest("a VM cannot have the host's own network", remedy=HOST_NETWORK_REMEDY)
    stored = image_reference.stored_image(container)
    image_reference.refuse_annotations_of_image(container, stored)
    others = (image_reference.IMAGE, image_reference.INIT_DATA, volumes.ANNOTATION)
    config.check_annotations(container.annotations, others)
    settings = config.build(config.resolve(config.files(), container.annotations))
    tenant = _init_data(container.annotations)
    _check_guest_hooks(container, tenant.container.hooks if tenant else ())
    shared_root = tenant is None or tenant.host.insecure_shared_root
    pod = pods.find(container, container_id)
    idle = pod is not None and pod.idle
    if idle:
        image = image_reference.ImageReference("", image_reference.NOTHING)
    else:
        image = image_reference.choose(
            container, stored, settings.image.source, shared_root=shared_root
        )
    host = tenant.host if tenant is not None else None
    own = {} if idle else volumes.find(container, image.reference, host, alone=pod is None)
    plan = sharing.plan(container, image.reference, own=own, idle=idle)
    container = volumes.noted(container, plan.shared)
    sharing.check(container, plan, host)
    container = block_devices.settled(container, host)
    handover = handing.Handover(
        id=container_id,
        container=container,
        image=image.reference,
        image_source=image.source,
        init_data=tenant.text if tenant else b"",
        init_data_digest=tenant.digest if tenant else b"",
        accepted_tees=tenant.attestation.tees if tenant else (),
        guest_image=settings.guest.image or installation.guest_image(),
        config=settings,
        debug=invocation.debug,
        bus=bus,
        pod=pod,
        volumes=own,
    )
    return Prepared(handover, oci_config, plan)


def _check_id(container_id: str) -> None:
    store.check_id(container_id)
    if len(container_id) > limits.CONTAINER_ID_LENGTH or container_id.startswith("-"):
        raise InvalidRequest(
            f"invalid container id {container_id[:80]!r}: the guest takes "
            f"{limits.CONTAINER_ID_LENGTH} characters, of which the first is no dash"
        )


def create(
    invocation: Invocation, prepared: Prepared, pid_path: str, console_socket: str = ""
) -> Created:
    """Make the container. On success the pid file, where one is wanted, is written last. Signals are
    held back from here to the process's end, but for the time that the shim takes.

    console_socket: where the master of the container's terminal goes; without one the caller gets
    it. Raises SealrunError; then nothing is left of the container."""
    if pid_path:
        pid_file.expect_place(pid_path)
    hold_back()
    open_files.provide()
    with sharing.open_sources(prepared.handover.container, prepared.plan) as sources:
        directory = store.make_container(os.path.abspath(invocation.root), prepared.handover.id)
        try:
            with _Attempt(invocation, directory, prepared) as attempt:
                directory.hold()
                attempt.make(console_socket, sources)
                if pid_path:
                    pid_file.write(pid_path, attempt.stand_in)
        except OSError as error:
            raise HostError(f"cannot create the container: {cause(error)}") from error
    return Created(directory, attempt.stand_in, attempt.terminal)


class _Attempt:
    """A creation under way: what was made so far, undone where the block is left by an exception."""

    def __init__(
        self, invocation: Invocation, directory: store.Directory, prepared: Prepared
    ) -> None:
        self.stand_in = 0
        self.terminal: Terminal | None = None
        self._invocation = invocation
        self._directory = self._shim = directory
        self._prepared = prepared
        self._log = Log(invocation.log, invocation.log_format, debug=invocation.debug)
        self._phase = ""
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            self._undo(error)

    def make(self, console_socket: str, sources: sharing.Sources) -> None:
        """State directory, shim, stand-in, then the request, in which all the slow work is done."""
        directory, handover = self._directory, self._prepared.handover
        container = handover.container
        early = (*(container.hooks.prestart or ()), *(container.hooks.create_runtime or ()))
        self._write_files()
        for line in container.left_out:
            self._log.info(line)
        if not early:
            # First the shim, which then gets ready while the stand-in is made.
            self._spawn_shim()
        slave = standing.NO_TERMINAL
        if container.terminal:
            size = Size(container.rows, container.columns)
            self.terminal = Terminal(size if console_socket else own_size() or size)
            slave = self.terminal.slave
        self.stand_in, link = standing.start(
            container,
            slave,
            self._enlist_stand_in,
            mounts=sources.for_stand_in,
            # What is copied to the host's copy of an image never gets to the guest.
            readonly=container.rootfs_readonly or not self._prepared.plan.root,
        )
        with link:
            if early:
                self._run_hooks()
                self._spawn_shim()
            if self.terminal is not None and console_socket:
                self.terminal.hand_over(console_socket)
            self._connection = Connection(directory)
            fields = ("create", handover.id, str(self.stand_in))
            stdio = (0, 1, 2) if self.terminal is None else (slave, slave, slave)
            descriptors = array.array("i", (*stdio, link.fileno(), *sources.for_guest))
            self._connection.send(*fields, descriptors=descriptors.tobytes())
        if self.terminal is not None:
            self.terminal.close_slave()
        self._await_answer(self._connection)

    def _write_files(self) -> None:
        directory, handover = self._directory, self._prepared.handover
        directory.write(store.STATE, _creating(handover))
        directory.write(handing.OCI_CONFIG_FILE, self._prepared.oci_config)
        directory.write(handing.FILE, handing.encode(handover))
        later = handover.container.hooks
        for name, found in ((store.POSTSTART, later.poststart), (store.POSTSTOP, later.poststop)):
            if found:
                directory.write(name, hooks.encode(found))

    def _spawn_shim(self) -> None:
        """Or find that of the container's pod."""
        handover = self._prepared.handover
        with shim_process.listen(self._directory) as listener:
            if handover.pod is None:
                shim_process.spawn(self._directory, listener)
            else:
                self._shim = joining.join(self._directory, listener.fileno(), handover)

    def _run_hooks(self) -> None:
        """Those that the specification puts between the namespaces and the root file system.

        Raises HookFailed."""
        handover = self._prepared.handover
        state = _creating(handover, self.stand_in)
        for name, found in (
            ("prestart", handover.container.hooks.prestart),
            ("createRuntime", handover.container.hooks.create_runtime),
        ):
            for hook in found or ():
                with interruptible():
                    hooks.run(hook, name, state, enlist=self._enlist_hook)

    def _enlist_hook(self) -> None:
        leftovers.enlist(self._directory, leftovers.HOOK_ROLE)

    def _enlist_stand_in(self) -> None:
        leftovers.enlist(self._directory, leftovers.STAND_IN_ROLE)

    def _await_answer(self, connection: Connection) -> None:
        try:
            with interruptible():
                while (progress := connection.receive(seconds=None)) is not None:
                    self._tell(*progress)
        except Reported as error:
            # Of the guest's failures the text names the phase; of the host's own, this one does.
            if error.kind in HOST_KINDS:
                error.phase = self._phase or "boot"
            raise
        except HostError as error:
            raise shim_process.explained(error, self._shim) from error
        connection.close()

    def _tell(self, phase: str, text: str) -> None:
        self._phase = phase
        line = one_line(f"{phase}: {text}")
        self._log.info(line)
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write(f"sealrun: {line}\n")

    def _undo(self, error: BaseException) -> None:
        """Take everything down again; what cannot be is added to `error`."""
        if self._connection is not None:
            self._connection.close()
        if self.terminal is not None:
            self.terminal.close()
        try:
            alone = self._prepared.handover.pod is None
            seconds = PATIENCE if alone else ANSWER_SECONDS  # others are in a pod's VM
            delete.delete(self._invocation, self._directory, force=True, seconds=seconds)
        except SealrunError as leftover:
            if isinstance(error, SealrunError):
                error.remedy = f"{error.remedy}; {leftover.text}".removeprefix("; ")
        if self.stand_in:
            os.waitpid(self.stand_in, 0)


def _init_data(annotations: dict[str, str]) -> "InitData | None":
    """The tenant's document, where there is one. It is the guest that obeys it, but what the guest
    would refuse is refused here before a VM boots. Raises InvalidRequest."""
    names = (image_reference.INIT_DATA, image_reference.KATA_INIT_DATA)
    given = [name for name in names if name in annotations]
    if not given:
        return None
    for name in given:
        # A shell that could not run `sealrun init-data` hands over the same: never for no tenant at all.
        if not annotations[name].strip():
            raise InvalidRequest(
                f"annotation {name} is empty",
                remedy="look at what `sealrun init-data` said, or leave the annotation away",
            )
    if len(given) > 1 and len({annotations[name] for name in given}) > 1:
        raise InvalidRequest(f"annotations {' and '.join(given)} contradict each other")
    from sealrun_protocol import init_data

    try:
        return init_data.parse(init_data.decode_annotation(annotations[given[0]]))
    except init_data.InitDataInvalid as error:
        raise InvalidRequest(f"cannot read annotation {given[0]}: {error}") from error


def _check_guest_hooks(
    container: bundle.ContainerSpec, allowed: tuple[tuple[str, ...], ...]
) -> None:
    """createContainer and startContainer hooks run in the guest: the tenant has to name them."""
    for kind, wanted in (
        ("createContainer", container.hooks.create_container),
        ("startContainer", container.hooks.start_container),
    ):
        for index, hook in enumerate(wanted or ()):
            if (hook.path, *(hook.args or ())[1:]) not in allowed:
                raise InvalidRequest(
                    f"$.hooks.{kind}[{index}]: it would run in the guest, and is not among the hooks of "
                    "[container] in the init-data"
                )


def _creating(handover: handing.Handover, pid: int = 0) -> bytes:
    """The first state document (see store.py for the order of its members). pid: the stand-in's,
    for hooks."""
    container = handover.container
    document = {
        "ociVersion": container.oci_version,
        "id": handover.id,
        "status": "creating",
        "pid": pid,
        "bundle": container.bundle,
        "annotations": container.annotations,
    }
    return msgspec.json.encode(document)
