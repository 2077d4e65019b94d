"""The operator's settings: one table, from which everything else about them is derived.

A setting is one annotated member below: its name (the key in sealrun.toml), its type and bounds,
its default, what it means, and the annotation that may override it for one container. `config.py`
reads files by it, `config/sealrun.toml` is written from it (a test holds them equal), and
`sealrun config` shows it.

Nothing here is obeyed by the guest: what a tenant trusts stands in the init-data, never here.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

from msgspec import Meta, Struct

from sealrun_runtime import patterns

MOST_CPUS: Final = 254
"""Of one VM: a CPU's number has 8 bits where there is no x2APIC (QEMU without KVM), and one of them is all."""

Endpoint = Annotated[str, Meta(pattern=patterns.ENDPOINT)]
Registry = Annotated[str, Meta(pattern=patterns.REGISTRY)]
Directory = Annotated[str, Meta(pattern=patterns.DIRECTORY)]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of sealrun.toml."""


class VmSettings(Section, frozen=True, kw_only=True):
    """The micro-VM that a sandbox gets."""

    driver: Annotated[
        Literal["auto", "cloud-hypervisor", "qemu"],
        Meta(
            description="VMM: auto takes Cloud Hypervisor where it is installed and this machine "
            "can boot with it, else qemu"
        ),
    ] = "auto"
    accelerator: Annotated[
        Literal["auto", "kvm", "tcg"],
        Meta(
            description="Who executes the guest: kvm needs a CPU with vmx or svm and /dev/kvm; "
            "tcg emulates, runs anywhere and is slow"
        ),
    ] = "auto"
    cpus: Annotated[
        int,
        Meta(
            ge=1,
            le=MOST_CPUS,
            description="Virtual CPUs; without a TEE as many more as the containers' quotas fill",
            extra={"annotation": "io.sealrun.cpus"},
        ),
    ] = 1
    memory: Annotated[
        int,
        Meta(
            ge=128,
            le=1 << 22,
            description="Memory in MiB; without a scratch disk the image is unpacked into it. Without "
            "a TEE the containers' memory limits are added to it",
            extra={"annotation": "io.sealrun.memory"},
        ),
    ] = 1024
    scratch: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 24,
            description="Size in MiB of the disk that holds images and what containers write; the guest "
            "encrypts it by a key of its own. It takes space on the host as it is written. 0: none, all "
            "of that is in the VM's memory",
            extra={"annotation": "io.sealrun.scratch"},
        ),
    ] = 10240
    scratch_directory: Annotated[
        Directory,
        Meta(description="Where the host keeps these disks, as files that have no name"),
    ] = "/var/tmp"
    max_cpus: Annotated[
        int,
        Meta(
            ge=0,
            le=MOST_CPUS,
            description="What a VM without a TEE may grow to; 0: the host's CPUs",
        ),
    ] = 0
    max_memory: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 22,
            description="What a VM without a TEE may grow to, in MiB, within the host's memory; 0: all of it",
        ),
    ] = 0
    qemu: Annotated[
        Directory, Meta(description="Path of QEMU's binary; empty: the system's own")
    ] = ""
    cloud_hypervisor: Annotated[
        Directory, Meta(description="Path of Cloud Hypervisor's binary; empty: the system's own")
    ] = ""
    firmware: Annotated[
        Directory,
        Meta(
            description="Path of the firmware that measures what a VM with a TEE boots (OVMF; for "
            "SEV-SNP with Cloud Hypervisor an IGVM file); empty: the system's own"
        ),
    ] = ""
    swtpm: Annotated[
        Directory, Meta(description="Path of the TPM emulator's binary; empty: the system's own")
    ] = ""
    tpm_state: Annotated[
        Directory,
        Meta(
            description="Where the seeds of this host's TPM keys are kept: every VM's TPM has the "
            "same attestation key, which a key broker can be told to trust"
        ),
    ] = "/var/lib/sealrun/tpm"
    quote_service: Annotated[
        Directory,
        Meta(description="Socket of the service that signs TDX quotes; empty: none"),
    ] = "/run/tdx-qgs/qgs.socket"
    insecure_no_landlock: Annotated[
        bool,
        Meta(
            description="Do without Landlock, which confines Cloud Hypervisor to its sandbox's "
            "files and takes Linux 6.2"
        ),
    ] = False
    boot_timeout: Annotated[
        int,
        Meta(ge=1, le=3600, description="Seconds from the VM's start to the agent's first word"),
    ] = 120
    silence_timeout: Annotated[
        int,
        Meta(
            ge=1,
            le=3600,
            description="Seconds for which a VM that runs may say nothing before it counts as hung "
            "and is ended",
        ),
    ] = 60


class GuestSettings(Section, frozen=True, kw_only=True):
    """What boots in the VM."""

    image: Annotated[
        Directory,
        Meta(
            description="Directory of the guest image (kernel, initrd); "
            "empty: the one that was installed with this program"
        ),
    ] = ""


class RelaySettings(Section, frozen=True, kw_only=True):
    """The byte tunnels that the host opens for a guest."""

    endpoints: Annotated[
        tuple[Endpoint, ...],
        Meta(
            description="host:port that a guest may reach besides its image's registry and "
            "the key broker of its init-data"
        ),
    ] = ()
    timeout: Annotated[
        int, Meta(ge=1, le=600, description="Seconds that a connection may take to stand")
    ] = 30


class ImageSettings(Section, frozen=True, kw_only=True):
    """Where a container's root file system comes from."""

    source: Annotated[
        Literal["auto", "guest", "bundle"],
        Meta(
            description="guest: the guest pulls the image; bundle: the guest gets the bundle's "
            "directory from the host, which is refused with a TEE and with init-data that does not "
            "allow it; auto: the latter only where there is no image that a guest could pull"
        ),
    ] = "auto"
    transport: Annotated[
        Literal["registry", "cache"],
        Meta(
            description="registry: the guest fetches images itself; cache: it may ask this host for "
            "them by digest, which fetches each blob once for all sandboxes (skopeo does, with the "
            "host's credentials and mirrors); the guest checks the bytes either way",
            extra={"annotation": "io.sealrun.image.transport"},
        ),
    ] = "registry"
    insecure_registries: Annotated[
        tuple[Registry, ...],
        Meta(
            description="Registries (host or host:port) that speak plain http; "
            "a hint that the guest obeys only where no init-data and no TEE is in play"
        ),
    ] = ()


class CacheSettings(Section, frozen=True, kw_only=True):
    """What this host keeps of the images that guests ask it for."""

    directory: Annotated[Directory, Meta(description="Where it lies")] = "/var/cache/sealrun/images"
    size: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 30,
            description="MiB that it may have; what was not used for the longest time goes first",
        ),
    ] = 20480
    authfile: Annotated[
        Directory,
        Meta(
            description="Credentials for registries (containers-auth.json); empty: the host's own"
        ),
    ] = ""


class LogSettings(Section, frozen=True, kw_only=True):
    """What the shim writes to shim.log in the state directory."""

    level: Annotated[
        Literal["error", "info", "debug"], Meta(description="error, info or debug")
    ] = "info"


class Config(Section, frozen=True, kw_only=True):
    """All settings, resolved. Immutable: `create` stores a copy for the shim, so that a later edit
    never changes a running sandbox."""

    tee: Annotated[
        Literal["auto", "none", "snp", "tdx", "tpm"],
        Meta(
            description="What protects the VM from the host: auto uses SEV-SNP or TDX where the node "
            "has it, and what the init-data names; tpm proves what was booted and protects nothing"
        ),
    ] = "auto"
    vm: VmSettings = VmSettings()
    guest: GuestSettings = GuestSettings()
    relay: RelaySettings = RelaySettings()
    image: ImageSettings = ImageSettings()
    cache: CacheSettings = CacheSettings()
    log: LogSettings = LogSettings()


class Setting(NamedTuple):
    """One row of the table. `kind` is the annotated type that msgspec converts a value to."""

    key: str
    kind: Any
    default: object
    doc: str
    annotation: str

    @property
    def choices(self) -> tuple[str, ...]:
        """All values, where they are words of a list."""
        kind = get_args(self.kind)[0]
        return get_args(kind) if get_origin(kind) is Literal else ()


def _rows(section: type[Section], prefix: str) -> Iterator[Setting]:
    defaults = section()
    for name, hint in get_type_hints(section, include_extras=True).items():
        if isinstance(hint, type) and issubclass(hint, Section):
            yield from _rows(hint, f"{prefix}{name}.")
            continue
        meta = next(part for part in get_args(hint) if isinstance(part, Meta) and part.description)
        yield Setting(
            key=prefix + name,
            kind=hint,
            default=getattr(defaults, name),
            doc=meta.description or "",
            annotation=(meta.extra or {}).get("annotation", ""),
        )


def table() -> dict[str, Setting]:
    """Every setting by its dotted key, in the order of the file."""
    return {setting.key: setting for setting in _rows(Config, "")}
