"""Whether a signature is for the image that is meant: `signedIdentity` of containers-policy.json(5). No I/O.

Names are compared as containers/image does: as they are written, a short name being Docker Hub's. A name
without tag and digest matches where only repositories are compared.
"""

import re
from typing import Final, NamedTuple

from sealrun_protocol.registries import is_short

from sealrun_agent.errors import PullError
from sealrun_agent.image.reference import Reference, parse

_PREFIX: Final = re.compile(
    r"[A-Za-z0-9._\[\]:-]{1,255}(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)


class IdentityInvalid(Exception):
    """The policy's own name cannot be read; the text says why."""


class _Name(NamedTuple):
    """A reference as it is written: text is all of it, normalized."""

    name: str
    text: str
    tagged: bool

    @property
    def bare(self) -> bool:
        """Neither tag nor digest."""
        return self.name == self.text


class Identity(NamedTuple):
    """kind: `type` of the policy. first, second: its other members, in the manual's order."""

    kind: str
    first: str = ""
    second: str = ""

    @classmethod
    def of(cls, kind: str, first: str = "", second: str = "") -> "Identity":
        """Check the policy's own names. Raises IdentityInvalid."""
        if kind in ("exactReference", "exactRepository"):
            name = _read(first)
            if name is None or (kind == "exactReference" and name.bare):
                raise IdentityInvalid(f"{first[:200]!a} is not a whole reference")
        if kind == "remapIdentity":
            for prefix in (first, second):
                if not _PREFIX.fullmatch(prefix):
                    raise IdentityInvalid(f"{prefix[:200]!a} is not host[:port][/path]")
        return cls(kind, first, second)

    def matches(self, image: Reference, signed: str) -> bool:
        """signed: the docker-reference of the signature."""
        signature = _read(signed)
        if signature is None:
            return False
        intended = _of(image)
        match self.kind:
            case "matchExact":
                return not signature.bare and signature.text == intended.text
            case "matchRepoDigestOrExact":
                return _repo_digest_or_exact(intended, signature)
            case "matchRepository":
                return signature.name == intended.name
            case "exactReference":
                return not signature.bare and signature == _read(self.first)
            case "exactRepository":
                meant = _read(self.first)
                return meant is not None and signature.name == meant.name
            case "remapIdentity":
                return _repo_digest_or_exact(self._remapped(intended), signature)
        return False

    def _remapped(self, intended: _Name) -> _Name:
        name = intended.name
        if name != self.first and not name.startswith(f"{self.first}/"):
            return intended
        moved = self.second + name[len(self.first) :]
        return _Name(moved, moved + intended.text[len(name) :], intended.tagged)


MATCH_REPO_DIGEST_OR_EXACT: Final = Identity("matchRepoDigestOrExact")


def _repo_digest_or_exact(intended: _Name, signature: _Name) -> bool:
    """The digest itself is compared with the signed one, whatever the name."""
    if signature.bare:
        return False
    if intended.tagged:
        return signature.text == intended.text
    return signature.name == intended.name


def _of(image: Reference) -> _Name:
    if image.digest:
        return _Name(image.name, f"{image.name}@{image.digest}", False)
    return _Name(image.name, f"{image.name}:{image.tag}", True)


def _read(text: str) -> _Name | None:
    full = text
    if is_short(text):
        full = f"docker.io/{text}" if "/" in text else f"docker.io/library/{text}"
    try:
        read = parse(full)
    except PullError:
        return None
    tagged = ":" in full.partition("@")[0].rpartition("/")[2]
    tag = f":{read.tag}" if tagged else ""
    digest = f"@{read.digest}" if read.digest else ""
    return _Name(read.name, f"{read.name}{tag}{digest}", tagged)
