"""Init-data: the tenant's document, bound to the VM's launch by its digest. No I/O.

CoCo's TOML container::

    version = "0.1.0"
    algorithm = "sha256"         # or sha384, sha512
    [data]
    "aa.toml" = '''…'''          # CoCo's: token_configs.kbs.url and .cert name the key broker
    "sealrun.toml" = '''…'''     # ours: `Attestation`, `Image`, `Container`, `Host`, `Workload`

The digest is taken over the exact bytes of the text. The host may read all of it: init-data has
integrity, not confidentiality.

What is ours is read strictly: an unknown name there is an error, because a protection that was
misspelt would be none. Of CoCo's documents the key broker is taken, and `[image]` of cdh.toml. What asks
for a protection that this agent does not have (an agent policy) is refused; the names of others that were
not looked into are kept in `InitData.ignored`, so that the agent can say so.
"""

import binascii
import hashlib
import tomllib
import zlib
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from sealrun_protocol import image_wishes, limits, registries
from sealrun_protocol.decoding import from_values
from sealrun_protocol.image_wishes import Image
from sealrun_protocol.proxies import Proxy
from sealrun_protocol.urls import URL

VERSION: Final = "0.1.0"
ALGORITHMS: Final = ("sha256", "sha384", "sha512")
APIS: Final = ("resource", "attestation")
TEES: Final = ("snp", "tdx", "tpm")
KEYS: Final = ("ECDH-ES+A256KW-P256", "ECDH-ES+A256KW-P521", "RSA-OAEP-256")
BROKER_DOCUMENT: Final = "aa.toml"
OUR_DOCUMENT: Final = "sealrun.toml"

_POLICY_DOCUMENT: Final = "policy.rego"
_DATA_HUB_DOCUMENT: Final = "cdh.toml"
_COCO_DOCUMENTS: Final = frozenset({BROKER_DOCUMENT, _DATA_HUB_DOCUMENT, _POLICY_DOCUMENT})
_CONTAINER_KEYS: Final = ("version", "algorithm", "data")
_DOCUMENTS: Final = 64
# tomllib takes quadratic time for one key of many parts; a key does not span lines.
_LINE_DOTS: Final = 1000
_GZIP_MAGIC: Final = b"\x1f\x8b"
_CERTIFICATE: Final = "-----BEGIN CERTIFICATE-----"

_Section = TypeVar("_Section", bound=msgspec.Struct)


class InitDataInvalid(Exception):
    """The init-data cannot be read; the text names the place, in one line."""


class Broker(NamedTuple):
    """The tenant's key broker.

    url: as given, without a slash at the end. host: without brackets. path: prefix of the broker's
    own paths, "" or "/…". ca_pem: the only roots to trust; "" = those of the guest image. key: which key
    the guest makes for the broker's answers, one of KEYS, by CoCo's name.
    """

    url: str
    tls: bool
    host: str
    port: int
    path: str
    ca_pem: str
    key: str = KEYS[0]


class Attestation(msgspec.Struct, frozen=True, kw_only=True):
    """`[attestation]` of sealrun.toml.

    tees: those that this may be used with, of `TEES`; empty: any, or none.
    insecure_sample_evidence: where there is no TEE, evidence that proves nothing may be sent.
    """

    tees: tuple[str, ...] = ()
    insecure_sample_evidence: bool = False


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """`[container]` of sealrun.toml: what may run in the image besides what the image itself says.

    commands: whole argument vectors. environment: names of variables that the host may set, a `*` at
    the end stands for any rest. allow_exec: the host may run further programs in the container.
    allow_output: with a TEE, the host may read what the container writes to stdout, stderr or a terminal.
    hooks: createContainer and startContainer hooks that may run in the guest, each as its path and the
    arguments behind the first. volumes: places where an empty directory of the sandbox's own may be mounted
    (emptyDir), besides those that the image declares. share_pid: the containers of a pod may share a pid
    namespace: each sees the processes of the others, and may trace them. insecure_any_process: the host
    chooses program, environment, user, directory and mounts: it can read everything in the container.
    """

    commands: tuple[tuple[str, ...], ...] = ()
    environment: tuple[str, ...] = ()
    allow_exec: bool = False
    share_pid: bool = False
    allow_output: bool = False
    hooks: tuple[tuple[str, ...], ...] = ()
    volumes: tuple[str, ...] = ()
    insecure_any_process: bool = False


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """`[host]` of sealrun.toml: what the tenant leaves to the host.

    insecure_shared_root: a container may run from a directory of the host, which the host can read
        and change while it runs, instead of an image.
    insecure_shared_directories: places in a container, each with all below it, where the host may
        mount its own directories and files, which it can read and change while they are there.
    insecure_block_devices: places in a container, each with all below it, where the host may put nodes
        of its own block devices, which it can read and change whenever it likes.
    """

    insecure_shared_root: bool = False
    insecure_shared_directories: tuple[str, ...] = ()
    insecure_block_devices: tuple[str, ...] = ()

    def may_share_at(self, destination: str) -> bool:
        """Whether a directory or file of the host may be mounted at this path of a container."""
        return _is_below(destination, self.insecure_shared_directories)

    def may_give_disk_at(self, path: str) -> bool:
        """Whether a block device of the host may be at this path of a container."""
        return _is_below(path, self.insecure_block_devices)


def _is_below(path: str, places: tuple[str, ...]) -> bool:
    components = _components(path)
    return any(components[: len(place)] == place for place in map(_components, places))


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """`[workload]` of sealrun.toml: what the containers may ask of the agent, at 127.0.0.1:8006 as CoCo's
    workloads do.

    api: of APIS. resource: whatever the broker gives to this VM. attestation: tokens, evidence over data
        of the container's choice, and entries in the event log.
    """

    api: tuple[str, ...] = ()


class InitData(NamedTuple):
    """One accepted document. digest: over `text`, with `algorithm` (32, 48 or 64 bytes)."""

    text: bytes
    algorithm: str
    digest: bytes
    broker: Broker | None
    attestation: Attestation
    image: Image
    ignored: tuple[str, ...]
    host: Host = Host()
    container: Container = Container()
    workload: Workload = Workload()


ABSENT: Final = InitData(b"", ALGORITHMS[0], b"", None, Attestation(), Image(), ())
"""What holds where no tenant gave any: no broker, no sample evidence, every image. Its `text` is
empty: nobody is there to ask for more."""


def parse(text: bytes) -> InitData:
    """Read the container and its documents. Raises InitDataInvalid."""
    if len(text) > limits.INIT_DATA_BYTES:
        raise InitDataInvalid(f"the init-data is longer than {limits.INIT_DATA_BYTES} bytes")
    container = _toml(text, "the init-data")
    _refuse_unknown(container, _CONTAINER_KEYS, "the init-data")
    if container.get("version") != VERSION:
        raise InitDataInvalid(f'the init-data: version must be "{VERSION}"')
    algorithm = _algorithm(container.get("algorithm"))
    documents = _documents(container.get("data"))
    _refuse_protections(documents)
    ours = _our_document(documents.get(OUR_DOCUMENT, ""), _data_hub_image(documents))
    return InitData(
        text=text,
        algorithm=algorithm,
        digest=hashlib.new(algorithm, text).digest(),
        broker=_broker(documents.get(BROKER_DOCUMENT, "")),
        ignored=tuple(sorted(documents.keys() - {BROKER_DOCUMENT, OUR_DOCUMENT})),
        **ours._asdict(),
    )


def endpoints(init_data: InitData) -> tuple[tuple[str, int], ...]:
    """(host, port) of what the host's relay may open for a guest that was given this init-data, beside
    the places where its image lies."""
    broker = init_data.broker
    named = () if broker is None else ((broker.host, broker.port),)
    return named + image_wishes.endpoints(init_data.image)


def encode_annotation(text: bytes) -> str:
    """base64(gzip(text)), as Kata's annotation cc_init_data has it; same text, same annotation."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)  # 31: gzip, without name and time
    return binascii.b2a_base64(
        compressor.compress(text) + compressor.flush(), newline=False
    ).decode()


def decode_annotation(value: str) -> bytes:
    """The TOML text from base64(gzip(TOML)) or base64(TOML). Raises InitDataInvalid."""
    too_long = f"the init-data is longer than {limits.INIT_DATA_BYTES} bytes"
    if len(value) > 2 * limits.INIT_DATA_BYTES:
        raise InitDataInvalid(too_long)
    try:
        # People wrap base64 with the line feeds that base64(1) puts in.
        data = binascii.a2b_base64("".join(value.split()).encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InitDataInvalid("the annotation of the init-data is not base64") from error
    if data.startswith(_GZIP_MAGIC):
        data = _gunzip(data, too_long)
    if len(data) > limits.INIT_DATA_BYTES:
        raise InitDataInvalid(too_long)
    return data


def _gunzip(data: bytes, too_long: str) -> bytes:
    decompressor = zlib.decompressobj(31)
    try:
        text = decompressor.decompress(data, limits.INIT_DATA_BYTES + 1)
    except zlib.error as error:
        raise InitDataInvalid(f"the annotation of the init-data is not gzip: {error}") from error
    if len(text) > limits.INIT_DATA_BYTES:
        raise InitDataInvalid(too_long)
    if not decompressor.eof or decompressor.unused_data:
        raise InitDataInvalid("the annotation of the init-data is not one complete gzip stream")
    return text


def _toml(text: bytes, what: str) -> dict[str, Any]:
    if any(line.count(b".") > _LINE_DOTS for line in text.split(b"\n")):
        raise InitDataInvalid(f"{what}: a line has more than {_LINE_DOTS} dots")
    try:
        return tomllib.loads(text.decode())
    except UnicodeDecodeError as error:
        raise InitDataInvalid(f"{what}: it is not UTF-8") from error
    except ValueError as error:  # TOMLDecodeError, or a number that Python has no room for
        raise InitDataInvalid(f"{what}: it is not TOML: {error}") from error
    except RecursionError as error:
        raise InitDataInvalid(f"{what}: its values are nested too deeply") from error


def _refuse_unknown(table: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in table:
        if name not in known:
            import difflib  # only for the error

            near = difflib.get_close_matches(name[:80], known, n=1)
            hint = f", did you mean {near[0]}?" if near else f", known are {', '.join(known)}"
            raise InitDataInvalid(f"{where}: unknown name {name[:80]!a}{hint}")


def _algorithm(value: object) -> str:
    name = value.lower().replace("-", "") if isinstance(value, str) else ""
    if name not in ALGORITHMS:
        raise InitDataInvalid(f"the init-data: algorithm must be one of {', '.join(ALGORITHMS)}")
    return name


def _documents(data: object) -> dict[str, str]:
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise InitDataInvalid(
            "the init-data: [data] must be a table of strings (quote a name that has a dot)"
        )
    if len(data) > _DOCUMENTS:
        raise InitDataInvalid(f"the init-data: [data] has more than {_DOCUMENTS} documents")
    for name in data.keys() - _COCO_DOCUMENTS - {OUR_DOCUMENT}:
        import difflib

        # A misspelt name of ours would switch off all that the document asks for.
        if difflib.get_close_matches(name[:80].lower(), [OUR_DOCUMENT], cutoff=0.75):
            raise InitDataInvalid(
                f"the init-data: unknown document {name[:80]!a}, did you mean {OUR_DOCUMENT}?"
            )
    return data


def _broker(document: str) -> Broker | None:
    tables: object = _toml(document.encode(), BROKER_DOCUMENT)
    for name in ("token_configs", "kbs"):
        if not isinstance(tables, dict):
            raise InitDataInvalid(f"{BROKER_DOCUMENT}: token_configs must be a table")
        if name not in tables:
            return None
        tables = tables[name]
    where = f"{BROKER_DOCUMENT}: token_configs.kbs"
    if not isinstance(tables, dict):
        raise InitDataInvalid(f"{where} must be a table")
    url, ca_pem = tables.get("url"), tables.get("cert", "")
    if not isinstance(url, str):
        raise InitDataInvalid(f"{where}.url must be a string")
    if not isinstance(ca_pem, str) or (ca_pem and _CERTIFICATE not in ca_pem):
        raise InitDataInvalid(f"{where}.cert must be certificates in PEM")
    key = tables.get("tee_key_algorithm", KEYS[0])
    if key not in KEYS:
        raise InitDataInvalid(
            f"{where}.tee_key_algorithm: {str(key)[:80]!a} is none of {', '.join(KEYS)}"
        )
    return _broker_at(url, ca_pem, where)._replace(key=key)


def _broker_at(url: str, ca_pem: str, where: str) -> Broker:
    found = URL.fullmatch(url)
    if found is None:
        raise InitDataInvalid(f"{where}.url: {url[:200]!a} is not http[s]://host[:port][/path]")
    tls = found["scheme"] == "https"
    port = int(found["port"] or (443 if tls else 80))
    if not 0 < port < 65536:
        raise InitDataInvalid(f"{where}.url: {port} is not a port")
    if ca_pem and not tls:
        raise InitDataInvalid(f"{where}: cert is given, but url is plain http")
    return Broker(url.rstrip("/"), tls, found["v6"] or found["host"], port, found["path"], ca_pem)


def _refuse_protections(documents: dict[str, str]) -> None:
    """Refuse what asks for a protection that nobody here would give."""
    if _POLICY_DOCUMENT in documents:
        raise InitDataInvalid(
            f"{_POLICY_DOCUMENT}: this agent does not obey it; say what may run in {OUR_DOCUMENT}"
        )


def _data_hub_image(documents: dict[str, str]) -> dict[str, Any]:
    """What CoCo's own document says about images, by the names of ours."""
    where = f"{_DATA_HUB_DOCUMENT}: image"
    table = _toml(documents.get(_DATA_HUB_DOCUMENT, "").encode(), _DATA_HUB_DOCUMENT).get(
        "image", {}
    )
    if not isinstance(table, dict):
        raise InitDataInvalid(f"{where} must be a table")
    try:
        return image_wishes.coco_members(table)
    except image_wishes.WishInvalid as error:
        raise InitDataInvalid(f"{where}: {error}; say it in {OUR_DOCUMENT}") from error


class _Ours(NamedTuple):
    attestation: Attestation
    image: Image
    container: Container
    host: Host
    workload: Workload


def _our_document(document: str, more: dict[str, Any]) -> _Ours:
    """more: members of [image] that stand elsewhere."""
    tables = _toml(document.encode(), OUR_DOCUMENT)
    _refuse_unknown(tables, _Ours._fields, OUR_DOCUMENT)
    ours = _Ours(
        attestation=_section(tables.get("attestation", {}), Attestation, "attestation"),
        image=_image(tables.get("image", {}), more),
        container=_section(tables.get("container", {}), Container, "container"),
        host=_section(tables.get("host", {}), Host, "host"),
        workload=_section(tables.get("workload", {}), Workload, "workload"),
    )
    for name, given, known in (
        ("attestation.tees", ours.attestation.tees, TEES),
        ("workload.api", ours.workload.api, APIS),
    ):
        for unknown in set(given) - set(known):
            raise InitDataInvalid(
                f"{OUR_DOCUMENT}: {name}: {unknown[:200]!a} is none of {', '.join(known)}"
            )
    _check_container(ours.container)
    for name, places in (
        ("host.insecure_shared_directories", ours.host.insecure_shared_directories),
        ("host.insecure_block_devices", ours.host.insecure_block_devices),
        ("container.volumes", ours.container.volumes),
    ):
        for place in places:
            if not place.startswith("/") or {".", ".."}.intersection(place.split("/")):
                raise InitDataInvalid(
                    f"{OUR_DOCUMENT}: {name}: {place[:200]!a} is not an absolute path"
                )
    return ours


def _check_container(container: Container) -> None:
    """Refuse what nothing can match. Raises InitDataInvalid."""
    where = f"{OUR_DOCUMENT}: container"
    for name, vectors in (("commands", container.commands), ("hooks", container.hooks)):
        if () in vectors:
            raise InitDataInvalid(f"{where}.{name}: one of them is empty")
    for variable in container.environment:
        if "=" in variable or not variable:
            raise InitDataInvalid(f"{where}.environment: {variable[:200]!a} is no variable's name")


def _image(table: object, more: dict[str, Any]) -> Image:
    where = f"{OUR_DOCUMENT}: image"
    if isinstance(table, dict):
        for name in table.keys() & more.keys():
            raise InitDataInvalid(f"{where}.{name} is in {_DATA_HUB_DOCUMENT} too")
        table = table | more
        try:
            registries.parse(table.get("registry_config", {}))
        except registries.RegistriesInvalid as error:
            raise InitDataInvalid(f"{where}.registry_config: {error}") from error
        proxy = table.get("image_pull_proxy", {})
        if isinstance(proxy, dict):
            known = Proxy.__struct_fields__
            _refuse_unknown(proxy, known, f"{where}.image_pull_proxy")
    image = _section(table, Image, "image")
    try:
        image_wishes.check(image)
    except image_wishes.WishInvalid as error:
        raise InitDataInvalid(f"{where}.{error}") from error
    return image


def _section(table: object, kind: type[_Section], name: str) -> _Section:
    where = f"{OUR_DOCUMENT}: {name}"
    if not isinstance(table, dict):
        raise InitDataInvalid(f"{where} must be a table")
    _refuse_unknown(table, kind.__struct_fields__, where)
    try:
        return from_values(table, kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        raise InitDataInvalid(f"{where}.{place.rstrip('`')}: {reason.lower()}") from error
