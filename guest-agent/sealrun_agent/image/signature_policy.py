"""containers-policy.json(5): which signatures an image needs. Bytes in, requirements out; no I/O.

Rules, in order:

1. Unknown and doubled members are errors, as in containers/image: a misspelt protection would be none.
2. The requirements of the most specific scope of the transport `docker` count, and no others: reference,
   repository, each namespace above it, host; then `*.domain`, from the longest to the shortest, the
   transport's "" and at last `default`.
3. All requirements of that scope must hold; each that asks for a signature is content with one.
4. A key is in the policy (keyData) or in the tenant's broker (keyPath = "kbs:///…"). The guest has no files.
5. Asked for and not here: keyless sigstore (fulcio, rekor, pki), signedBaseLayer, X.509. They are errors.
"""

import binascii
import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.resource_uri import ResourceNameInvalid, parse_uri

from sealrun_agent.errors import VerifyError
from sealrun_agent.image.identity import MATCH_REPO_DIGEST_OR_EXACT, Identity, IdentityInvalid
from sealrun_agent.image.reference import Reference

_KEY_BYTES: Final = 1 << 20
_KEYLESS: Final = frozenset(
    {"fulcio", "pki", "rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas"}
)  # fmt: skip
_IDENTITY_MEMBERS: Final = {
    "matchExact": (),
    "matchRepoDigestOrExact": (),
    "matchRepository": (),
    "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",),
    "remapIdentity": ("prefix", "signedPrefix"),
}


class Key(NamedTuple):
    """Public keys. data: the keys themselves, or empty; then uri names a resource of the broker."""

    data: bytes
    uri: str


class Accept(NamedTuple):
    """insecureAcceptAnything."""


class Reject(NamedTuple):
    """reject."""


class Signed(NamedTuple):
    """signedBy (openpgp) or sigstoreSigned: one signature by one of the keys, over the manifest's digest
    and a name that fits."""

    openpgp: bool
    keys: tuple[Key, ...]
    identity: Identity


Requirement = Accept | Reject | Signed
Requirements = tuple[Requirement, ...]


class SignaturePolicy(NamedTuple):
    """scopes: of the transport `docker`."""

    default: Requirements
    scopes: dict[str, Requirements]

    def of(self, reference: Reference) -> Requirements:
        """What the image must fulfil. A tag beside a digest says nothing: nobody resolved it."""
        for scope in _scopes(reference):
            if scope in self.scopes:
                return self.scopes[scope]
        return self.default


def parse(text: bytes) -> SignaturePolicy:
    """Raises VerifyError(SIGNATURE_POLICY_INVALID)."""
    document = _object(_json(text), "the policy", ("default",), ("transports",))
    scopes: dict[str, Requirements] = {}
    transports = document.get("transports", {})
    if not isinstance(transports, dict):
        raise _invalid("transports is not an object")
    for transport, table in transports.items():
        if not isinstance(table, dict):
            raise _invalid(f"transports.{transport[:80]!a} is not an object")
        read = {scope: _requirements(value, scope) for scope, value in table.items()}
        if transport == "docker":
            scopes = read
    return SignaturePolicy(_requirements(document["default"], "default"), scopes)


def scope_lookup(table: dict[str, str], reference: Reference) -> str:
    """The value of the most specific scope of `table`, "" where there is none."""
    for scope in _scopes(reference):
        if scope in table:
            return table[scope]
    return ""


def _scopes(reference: Reference) -> Iterator[str]:
    name = reference.name
    yield f"{name}@{reference.digest}" if reference.digest else f"{name}:{reference.tag}"
    while True:
        yield name
        name, slash, _ = name.rpartition("/")
        if not slash:
            break
    host = reference.registry
    if not host.startswith("["):
        host = host.partition(":")[0]
        while "." in host:
            host = host.partition(".")[2]
            yield f"*.{host}"
    yield ""


def _requirements(value: object, scope: str) -> Requirements:
    where = f"scope {scope[:200]!a}"
    if not isinstance(value, list) or not value:
        raise _invalid(f"{where} is not a list of at least one requirement")
    return tuple(_requirement(entry, where) for entry in value)


def _requirement(value: object, where: str) -> Requirement:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "insecureAcceptAnything":
        _object(value, where, ("type",))
        return Accept()
    if kind == "reject":
        _object(value, where, ("type",))
        return Reject()
    if kind == "signedBy":
        gpg = ("keyPath", "keyPaths", "keyData")
        table = _object(value, where, ("type", "keyType"), (*gpg, "signedIdentity"))
        if table["keyType"] != "GPGKeys":
            raise _invalid(f"{where}: keyType {str(table['keyType'])[:80]!a} is not GPGKeys")
        return Signed(True, _keys(table, gpg, where), _identity(table, where))
    if kind == "sigstoreSigned":
        assert isinstance(value, dict)
        if asked := sorted(_KEYLESS & value.keys()):
            raise _invalid(
                f"{where}: {asked[0]}: signatures without keys of their own are not checked here"
            )
        keys = ("keyPath", "keyPaths", "keyData", "keyDatas")
        table = _object(value, where, ("type",), (*keys, "signedIdentity"))
        return Signed(False, _keys(table, keys, where), _identity(table, where))
    raise _invalid(f"{where}: unknown requirement {str(kind)[:80]!a}")


def _keys(table: dict[str, Any], names: tuple[str, ...], where: str) -> tuple[Key, ...]:
    given = [name for name in names if name in table]
    if len(given) != 1:
        raise _invalid(f"{where}: exactly one of {', '.join(names)} is needed")
    value = table[given[0]]
    values = value if given[0].endswith("s") else [value]
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise _invalid(f"{where}: {given[0]} is not text")
    return tuple(_key(text, where, path=given[0].startswith("keyPath")) for text in values)


def _key(text: str, where: str, *, path: bool) -> Key:
    if path:
        try:
            parse_uri(text)
        except ResourceNameInvalid as error:
            raise _invalid(
                f"{where}: keyPath names a file, and the guest has none: use keyData, or kbs:/// ({error})"
            ) from None
        return Key(b"", text)
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError:
        raise _invalid(f"{where}: keyData is not base64") from None
    if not 0 < len(data) <= _KEY_BYTES:
        raise _invalid(f"{where}: keyData is empty or longer than {_KEY_BYTES} bytes")
    return Key(data, "")


def _identity(table: dict[str, Any], where: str) -> Identity:
    value = table.get("signedIdentity")
    if "signedIdentity" not in table:
        return MATCH_REPO_DIGEST_OR_EXACT
    kind = value.get("type") if isinstance(value, dict) else None
    members = _IDENTITY_MEMBERS.get(kind) if isinstance(kind, str) else None
    if members is None:
        raise _invalid(f"{where}: unknown signedIdentity {str(kind)[:80]!a}")
    read = _object(value, f"{where}: signedIdentity", ("type", *members))
    values = tuple(read[name] for name in members)
    if not all(isinstance(text, str) for text in values):
        raise _invalid(f"{where}: signedIdentity: {', '.join(members)} must be text")
    try:
        return Identity.of(str(kind), *values)
    except IdentityInvalid as error:
        raise _invalid(f"{where}: signedIdentity: {error}") from error


def _object(
    value: object, what: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(f"{what} is not an object")
    for name in value:
        if name not in required + optional:
            raise _invalid(f"{what}: unknown member {name[:80]!a}")
    for name in required:
        if name not in value:
            raise _invalid(f"{what}: {name} is missing")
    return value


def strict_json(text: bytes) -> object:
    """JSON without doubled members. Raises ValueError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a member is there twice")
        return table

    try:
        return json.loads(text.decode(), object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _json(text: bytes) -> object:
    try:
        return strict_json(text)
    except ValueError as error:
        raise _invalid(f"it is not JSON: {ascii(str(error)[:120])[1:-1]}") from error


def _invalid(cause: str) -> VerifyError:
    return VerifyError(
        ErrorCode.SIGNATURE_POLICY_INVALID, f"cannot obey the image security policy: {cause}"
    )
