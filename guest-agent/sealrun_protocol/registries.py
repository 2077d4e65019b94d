"""Where an image is really fetched: containers-registries.conf(5), version 2. No I/O.

The agent asks it what to dial, the host's relay what to open; so both read it here. Rules, in order:

1. A short name becomes a full one by `aliases`, else by the one entry of `unqualified-search-registries`.
   More than one would ask each registry in turn whom the name belongs to: that is refused. Without
   either a short name means nothing.
2. The longest `prefix` that a reference begins with decides; `*.domain` stands for all hosts below the
   domain. It ends where a component does: `r.example/a` is no prefix of `r.example/ab`.
3. `blocked` refuses the image.
4. Mirrors come first, in their order, then `location` itself. Each replaces the prefix and keeps the rest.
   A mirror is for digests only, or for tags only, where `pull-from-mirror` (or, of the registry,
   `mirror-by-digest-only`) says so.
5. `insecure` is plain http, and nothing else: what has a certificate of its own is trusted by its CA.
"""

import re
from typing import Any, Final, NamedTuple

import msgspec

from sealrun_protocol.decoding import from_values

_SOURCES: Final = 32  # of one image
_ENTRIES: Final = 1024
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST: Final = rf"(?:\[[0-9A-Fa-f:.]{{2,45}}\]|{_LABEL}(?:\.{_LABEL})*)(?::[0-9]{{1,5}})?"
_PATH: Final = r"(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
_LOCATION: Final = re.compile(_HOST + _PATH)
_PREFIX: Final = re.compile(
    rf"{_HOST}{_PATH}(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
)
_WILDCARD: Final = re.compile(rf"\*\.{_LABEL}(?:\.{_LABEL})*")
_WHEN: Final = ("all", "digest-only", "tag-only")


class RegistriesInvalid(Exception):
    """Not a registries configuration that is obeyed here; the text says what, in one line."""


class Blocked(Exception):
    """The configuration refuses the image; the text names the prefix."""


class Mirror(msgspec.Struct, frozen=True, rename="kebab"):
    """`[[registry.mirror]]`."""

    location: str
    insecure: bool = False
    pull_from_mirror: str = ""


class Registry(msgspec.Struct, frozen=True, rename="kebab"):
    """`[[registry]]`. At least one of prefix and location is set."""

    prefix: str = ""
    location: str = ""
    insecure: bool = False
    blocked: bool = False
    mirror: tuple[Mirror, ...] = ()
    mirror_by_digest_only: bool = False

    @property
    def key(self) -> str:
        """What references are compared with."""
        return self.prefix or self.location


class Configuration(msgspec.Struct, frozen=True, rename="kebab"):
    """The document. short_name_mode: accepted and of no effect, nobody is there to be asked."""

    unqualified_search_registries: tuple[str, ...] = ()
    registry: tuple[Registry, ...] = ()
    aliases: dict[str, str] = {}
    short_name_mode: str = ""


NONE: Final = Configuration()


class Source(NamedTuple):
    """One place to ask. name: registry/repository there. insecure: in plain http."""

    name: str
    insecure: bool

    @property
    def registry(self) -> str:
        """host[:port]."""
        return self.name.partition("/")[0]


def parse(table: object) -> Configuration:
    """Read and check the document's TOML tables. Raises RegistriesInvalid."""
    _refuse_unknown(table)
    try:
        read = from_values(table, Configuration)
    except msgspec.ValidationError as error:
        raise RegistriesInvalid(str(error).lower().replace(" - at `$.", ": at `")) from error
    if len(read.registry) > _ENTRIES or len(read.aliases) > _ENTRIES:
        raise RegistriesInvalid(f"more than {_ENTRIES} entries")
    for registry in read.registry:
        _check(registry)
    keys = [registry.key for registry in read.registry]
    for key in keys:
        if keys.count(key) > 1:
            raise RegistriesInvalid(f"registry {key!a} is there twice")
    for host in read.unqualified_search_registries:
        if not re.fullmatch(_HOST, host):
            raise RegistriesInvalid(f"unqualified-search-registries: {host[:200]!a} is no registry")
    for name, full in read.aliases.items():
        if not is_short(name) or not full or is_short(full) or not _LOCATION.fullmatch(full):
            raise RegistriesInvalid(
                f"aliases: {name[:200]!a} = {full[:200]!a} is not a short name and registry/repository"
            )
    return read


def is_short(reference: str) -> bool:
    """Whether a reference does not begin with a registry."""
    first, slash, _ = reference.partition("/")
    return not (slash and (first == "localhost" or any(mark in first for mark in ".:[")))


def completed(configuration: Configuration, reference: str) -> str:
    """A short name written out; any other reference, and a short one that nothing is known of, as it
    is. Raises RegistriesInvalid where several registries would have to be asked."""
    if not is_short(reference):
        return reference
    name, at, digest = reference.partition("@")
    name, colon, tag = name.partition(":")
    rest = f"{colon}{tag}{at}{digest}"
    if full := configuration.aliases.get(name):
        return f"{full}{rest}"
    hosts = configuration.unqualified_search_registries
    if len(hosts) > 1:
        raise RegistriesInvalid(
            f"the short name {name[:200]!a} could be of any of {', '.join(hosts)[:200]!a}: "
            "write the registry, or an alias"
        )
    return f"{hosts[0]}/{name}{rest}" if hosts else reference


def sources(
    configuration: Configuration, name: str, tag: str | None, digest: str | None
) -> tuple[Source, ...]:
    """Where to ask for registry/repository, best first; never empty. Raises Blocked."""
    full = name + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    found = max(
        (entry for entry in configuration.registry if _begins(full, entry.key)),
        key=lambda entry: _specificity(full, entry.key),
        default=None,
    )
    if found is None:
        return (Source(name, False),)
    if found.blocked:
        raise Blocked(f"registry {found.key} is blocked")
    wanted = "digest-only" if digest else "tag-only"
    mirrors = tuple(
        Source(_rewritten(name, found.key, mirror.location), mirror.insecure)
        for mirror in found.mirror
        if _when(found, mirror) in ("all", wanted)
    )
    return (*mirrors, Source(_rewritten(name, found.key, found.location), found.insecure))


def sources_of(configuration: Configuration, reference: str) -> tuple[Source, ...]:
    """`sources` of a whole reference, which may be a short name, read as the agent reads it: Docker
    Hub by its one name, `latest` where nothing else is said. Raises Blocked, RegistriesInvalid."""
    name, at, digest = completed(configuration, reference).partition("@")
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    registry, slash, path = f"{head}{slash}{last}".partition("/")
    if slash:
        registry = registry.lower()
        registry = "docker.io" if registry == "index.docker.io" else registry
        if registry == "docker.io" and "/" not in path:
            path = f"library/{path}"
    tag = tag or ("" if at else "latest")
    return sources(configuration, f"{registry}{slash}{path}", tag or None, digest or None)


def _when(registry: Registry, mirror: Mirror) -> str:
    return mirror.pull_from_mirror or ("digest-only" if registry.mirror_by_digest_only else "all")


def _begins(reference: str, prefix: str) -> bool:
    if prefix.startswith("*."):
        return reference.partition("/")[0].partition(":")[0].endswith(prefix[1:])
    rest = reference[len(prefix) :]
    return reference.startswith(prefix) and (not rest or rest[0] in "/:@")


def _specificity(reference: str, prefix: str) -> int:
    """How much of a reference a prefix says: a wildcard ends within the host."""
    if prefix.startswith("*."):
        return len(prefix) - len(reference)  # less than any other's
    return len(prefix)


def _rewritten(name: str, prefix: str, location: str) -> str:
    """Without a location nothing is replaced. A prefix may end behind the name, in tag or digest."""
    if not location:
        return name
    if prefix.startswith("*."):
        return location + name[len(name.partition("/")[0]) :]
    return location + name[len(prefix) :]


def _check(registry: Registry) -> None:
    key = registry.key
    if not key:
        raise RegistriesInvalid("a registry has neither prefix nor location")
    shown = f"registry {key[:200]!a}"
    if not (_PREFIX.fullmatch(key) or _WILDCARD.fullmatch(key)):
        raise RegistriesInvalid(f"{shown}: its prefix is not host[:port][/path] or *.domain")
    if len(registry.mirror) >= _SOURCES:
        raise RegistriesInvalid(f"{shown}: more than {_SOURCES - 1} mirrors")
    for location in (registry.location, *(mirror.location for mirror in registry.mirror)):
        if location and not _LOCATION.fullmatch(location):
            raise RegistriesInvalid(
                f"{shown}: location {location[:200]!a} is not host[:port][/path]"
            )
    for mirror in registry.mirror:
        if not mirror.location:
            raise RegistriesInvalid(f"{shown}: a mirror has no location")
        if mirror.pull_from_mirror and mirror.pull_from_mirror not in _WHEN:
            raise RegistriesInvalid(f"{shown}: pull-from-mirror is none of {', '.join(_WHEN)}")
        if mirror.pull_from_mirror and registry.mirror_by_digest_only:
            raise RegistriesInvalid(
                f"{shown}: mirror-by-digest-only and pull-from-mirror exclude each other"
            )


def _refuse_unknown(table: Any) -> None:
    """A misspelt `blocked` would block nothing."""
    if not isinstance(table, dict):
        raise RegistriesInvalid("it is not a table")
    _only(table, Configuration, "")
    for registry in _list(table.get("registry", [])):
        _only(registry, Registry, "registry: ")
        for mirror in _list(registry.get("mirror", [])):
            _only(mirror, Mirror, "mirror: ")


def _list(value: object) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise RegistriesInvalid("registry and mirror must be arrays of tables")
    return value


def _only(table: dict[str, Any], kind: type[msgspec.Struct], where: str) -> None:
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    for name in table:
        if name not in known:
            raise RegistriesInvalid(f"{where}unknown name {name[:80]!a}")
