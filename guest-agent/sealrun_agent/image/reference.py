"""Image references: `registry[:port]/repository[:tag][@digest]`.

The grammar is that of the distribution project's `reference` package, with these decisions:

- The registry must be written. A short name ("alpine") means another image on each host's search
  list: it is refused, not guessed, unless the tenant's registry configuration completes it before
  (sealrun_protocol/registries.py). Engines hand over full names.
- Upper case alone makes no registry ("Host/a"): read again, in lower case, it would be a short name.
- `docker.io/alpine` and `index.docker.io/alpine` become `docker.io/library/alpine`.
- Without tag and digest the tag is `latest`. With both, the digest decides and the tag is only kept.
- Digests are sha256; other algorithms of the OCI image specification are refused by name.
"""

import re
from typing import Final, NamedTuple

from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import PullError

NAME_CHARACTERS: Final = 255  # of registry/repository together
_TEXT_CHARACTERS: Final = 512  # name, tag of 128, digest of 71
_SHOWN_CHARACTERS: Final = 120

_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_SHA256: Final = re.compile(r"sha256:[0-9a-f]{64}")


class Reference(NamedTuple):
    """One image as a person names it. At least one of `tag` and `digest` is set.

    registry: host or host:port, an IPv6 address in brackets; lower case.
    digest: `sha256:` and 64 lower-case hexadecimal digits.
    """

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    @property
    def name(self) -> str:
        """registry/repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def version(self) -> str:
        """What a registry is asked for: the digest where there is one, else the tag."""
        return self.digest or self.tag or ""


def is_sha256(digest: str) -> bool:
    """Whether `digest` is `sha256:` and 64 lower-case hexadecimal digits."""
    return _SHA256.fullmatch(digest) is not None


def parse(text: str) -> Reference:
    """Read a reference. Raises PullError(REFERENCE_INVALID)."""
    if len(text) > _TEXT_CHARACTERS:
        raise _invalid(text, f"it is longer than {_TEXT_CHARACTERS} characters")
    if "://" in text:
        raise _invalid(text, "write it without a transport or scheme")
    rest, at, digest = text.partition("@")
    if at and not is_sha256(digest):
        raise _invalid(text, "its digest is not sha256: and 64 lower-case hexadecimal digits")
    first, slash, path = rest.partition("/")
    if not slash or not _names_a_registry(first):
        raise _invalid(text, "short names are not configured, write registry/repository")
    repository, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _invalid(text, "its tag has characters that tags do not have")
    registry = _registry(text, first)
    if registry == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    if not _REPOSITORY.fullmatch(repository):
        raise _invalid(text, "its repository has characters that repositories do not have")
    if len(registry) + 1 + len(repository) > NAME_CHARACTERS:
        raise _invalid(text, f"its name is longer than {NAME_CHARACTERS} characters")
    return Reference(registry, repository, tag or (None if at else "latest"), digest or None)


def split_registry(registry: str) -> tuple[str, int | None]:
    """Host without brackets, and port or None, of a parsed reference's registry."""
    if registry.startswith("["):
        host, _, port = registry[1:].partition("]")
        return host, int(port[1:]) if port else None
    host, colon, port = registry.partition(":")
    return host, int(port) if colon else None


def _names_a_registry(first: str) -> bool:
    return first == "localhost" or any(mark in first for mark in ".:[")


def _registry(text: str, written: str) -> str:
    registry = written.lower()
    if registry.startswith("["):
        host, bracket, port = registry[1:].partition("]")
        if not bracket or not _is_ipv6(host) or (port and port[0] != ":"):
            raise _invalid(text, "its registry is not an IPv6 address in brackets")
        port = port[1:] if port else "1"
    else:
        host, colon, port = registry.partition(":")
        if not _HOST.fullmatch(host):
            raise _invalid(text, "its registry is not a host name")
        port = port if colon else "1"
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
        raise _invalid(text, "its registry's port is not a number from 1 to 65535")
    return "docker.io" if registry == "index.docker.io" else registry


def _is_ipv6(host: str) -> bool:
    import ipaddress

    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return "%" not in host


def _invalid(text: str, cause: str) -> PullError:
    shown = ascii(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")
    return PullError(
        ErrorCode.REFERENCE_INVALID, f"cannot read the image reference {shown}: {cause}"
    )
