"""What the tenant lets the image service do, and whether an image is among the allowed ones.

Patterns of `allowed`, each with the registry written out:

    registry/repository             any tag and digest of it
    registry/repository:tag         what the registry calls by that tag now
    registry/repository@sha256:…    exactly this manifest or index (a tag before the @ says nothing)
    registry/namespace/*            every repository below the namespace

A reference with a digest is never matched by a `:tag` pattern: nobody resolved the tag, so whoever
wrote the reference could put any digest beside it.
"""

from typing import NamedTuple

from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.proxies import Proxy
from sealrun_protocol.registries import NONE, Configuration

from sealrun_agent.errors import VerifyError
from sealrun_agent.image.reference import Reference


class ImagePolicy(NamedTuple):
    """From the tenant's init-data.

    insecure_registries: registries (as in Reference.registry) that are spoken to in plain http.
    ca_certificates: PEM, trusted in addition to the guest image's own.
    allowed: patterns, see above; None = every image.
    insecure_unpinned_keys: see check_pinned.
    registries: mirrors, blocked registries, short names. proxy: to reach them.
    credentials_uri: kbs:/// URI of the registries' credentials; empty: everything is anonymous.
    security_policy, security_policy_uri: which signatures are needed (signature_policy.py), as text or by a
        kbs:/// URI; both empty: none. lookaside: where those of simple signing are, by scope.
    """

    insecure_registries: tuple[str, ...] = ()
    ca_certificates: str = ""
    allowed: tuple[str, ...] | None = None
    insecure_unpinned_keys: bool = False
    registries: Configuration = NONE
    proxy: Proxy = Proxy()
    credentials_uri: str = ""
    security_policy: str = ""
    security_policy_uri: str = ""
    lookaside: dict[str, str] = {}  # noqa: RUF012 - frozen, and nobody writes into it


def check_reference(policy: ImagePolicy, reference: Reference) -> None:
    """Refuse, before any traffic, what no pattern can match. Raises VerifyError(IMAGE_NOT_ALLOWED)."""
    if policy.allowed is None:
        return
    for pattern in policy.allowed:
        name, at, _ = pattern.partition("@")
        if _untagged(name) == reference.name if at else _matches_name(pattern, reference):
            return
    raise VerifyError(
        ErrorCode.IMAGE_NOT_ALLOWED,
        f"image {reference}: no allowed image of the init-data matches it",
    )


def check_digests(policy: ImagePolicy, reference: Reference, digests: tuple[str, ...]) -> None:
    """Decide. `digests` are those of the documents that were read on the way from the reference to
    the manifest (index, manifest). Raises VerifyError(IMAGE_NOT_ALLOWED)."""
    if policy.allowed is None or _pinned(policy.allowed, reference, digests):
        return
    if any("@" not in p and _matches_name(p, reference) for p in policy.allowed):
        return
    raise VerifyError(
        ErrorCode.IMAGE_NOT_ALLOWED,
        f"image {reference} is {digests[-1]}: no allowed image of the init-data matches it",
    )


def check_pinned(
    policy: ImagePolicy, reference: Reference, digests: tuple[str, ...], *, signed: bool = False
) -> None:
    """Refuse to open an encrypted image whose digest the tenant did not name. signed: a signature that
    the tenant's policy asks for vouches for the manifest's digest.

    Nothing binds an encrypted layer to its image: whoever runs the registry can put the tenant's
    layers into a manifest beside one of his own, whose program then reads them.
    Raises VerifyError(IMAGE_NOT_ALLOWED)."""
    if signed or policy.insecure_unpinned_keys or _pinned(policy.allowed or (), reference, digests):
        return
    raise VerifyError(
        ErrorCode.IMAGE_NOT_ALLOWED,
        f"image {reference} is encrypted, and allowed images of the init-data do not name its digest"
        f" {digests[-1]}",
    )


def _pinned(allowed: tuple[str, ...], reference: Reference, digests: tuple[str, ...]) -> bool:
    """Whether a pattern with a digest matches."""
    for pattern in allowed:
        name, _, digest = pattern.partition("@")
        if digest in digests and _untagged(name) == reference.name:
            return True
    return False


def _untagged(name: str) -> str:
    """`registry/repository` of a name that may have a tag."""
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def _matches_name(pattern: str, reference: Reference) -> bool:
    """Whether a pattern without digest matches."""
    if pattern.endswith("/*"):
        return reference.name.startswith(pattern[:-1])
    if pattern == reference.name:
        return True
    return reference.digest is None and pattern == f"{reference.name}:{reference.tag}"
