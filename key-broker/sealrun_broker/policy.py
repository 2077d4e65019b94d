"""policy.toml: which evidence counts, and who gets which resource. What is not allowed is denied.

    [evidence]
    insecure_sample = false            # evidence that proves nothing
    snp_report_versions = [3, 4, 5]    # version 2 does not name the CPU

    [[resource]]                       # any number; one that matches is enough
    path = "default/key/*"             # `*` stands for any characters of one part
    tee = ["snp", "tdx"]               # absent: every kind of evidence that counts
    init_data = ["9f86d08…"]           # hex digests (SHA-256, -384 or -512); absent: every init-data
    images = ["sha256:…"]              # the guest pulled one of these and no other; absent: any
    claims = { "policy_smt_allowed" = [false] }   # the verifier's claims, by dotted name
    insecure_unrecognised = false      # also a VM that the reference values do not affirm

The file is read again when it changes. One that cannot be read denies everything until it can.
"""

import re
import tomllib
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from sealrun_protocol.resource_uri import ResourceName

from sealrun_broker import directory
from sealrun_broker.errors import BrokerError
from sealrun_broker.trustworthiness import AFFIRMING
from sealrun_broker.verifiers.binding import KINDS

_PART: Final = r"[A-Za-z0-9_*-][A-Za-z0-9_.*-]*"  # as of names (resource_uri.py)
_PATTERN: Final = re.compile(f"{_PART}/{_PART}/{_PART}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}")
_KIND: Final = re.compile("|".join(KINDS))
_IMAGE: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class Client(NamedTuple):
    """What is known of whoever asks. init_data: lower-case hex digests of the attested init-data,
    one per algorithm; empty where there was none. images: as in binding.Verified. status: of the
    appraisal against the reference values; reasons: why it is not better."""

    tee: str
    claims: Mapping[str, Any]
    init_data: Collection[str]
    images: Collection[str] | None
    status: str
    reasons: tuple[str, ...]


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[evidence]`."""

    insecure_sample: bool = False
    snp_report_versions: tuple[int, ...] = (3, 4, 5)


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[resource]]`."""

    path: str
    tee: tuple[str, ...] | None = None
    init_data: tuple[str, ...] | None = None
    images: tuple[str, ...] | None = None
    claims: dict[str, tuple[str | int | bool, ...]] = {}
    insecure_unrecognised: bool = False

    def covers(self, name: ResourceName) -> bool:
        """Whether the rule is about this resource."""
        return all(
            re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), part)
            for pattern, part in zip(self.path.split("/"), name, strict=True)
        )

    def objection(self, client: Client) -> str:
        """Why this rule does not give its resources to `client`, in one line; empty: it does."""
        if self.tee is not None and client.tee not in self.tee:
            return f"evidence of kind {client.tee} is not enough"
        if self.init_data is not None and set(self.init_data).isdisjoint(client.init_data):
            return "its init-data is another one" if client.init_data else "it sent no init-data"
        if self.images is not None:
            if client.images is None:
                return "no measured event log says which image it pulled"
            if not client.images or not set(client.images) <= set(self.images):
                return "it pulled another image" if client.images else "it pulled no image yet"
        for claim, good in self.claims.items():
            value = _claim(client.claims, claim)
            if not any(type(value) is type(known) and value == known for known in good):
                return f"the claim {claim} is another one"
        # Sample evidence proves nothing whatever it says; that it counts at all is [evidence]'s word.
        if not self.insecure_unrecognised and client.tee != "sample" and client.status != AFFIRMING:
            return "; ".join((f"the appraisal is {client.status}", *client.reasons))
        return ""


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    evidence: Evidence = Evidence()
    resource: tuple[Rule, ...] = ()

    def objection(self, name: ResourceName, client: Client) -> str:
        """Why `name` is not given to `client`, by the rule that comes nearest; empty: it is."""
        if client.tee == "sample" and not self.evidence.insecure_sample:
            return "sample evidence does not count"
        found = "no rule is about it"
        for rule in self.resource:
            if rule.covers(name):
                found = rule.objection(client)
                if not found:
                    return ""
        return found


def _claim(claims: Mapping[str, Any], name: str) -> object:
    """A claim by its dotted name; None where there is none."""
    value: object = claims
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def parse(text: bytes) -> Policy:
    """Raises BrokerError; its text names the place."""
    try:
        policy = msgspec.convert(tomllib.loads(text.decode()), Policy)
    except (ValueError, RecursionError) as error:
        raise BrokerError(f"cannot read the policy: {error}") from error
    if not policy.evidence.snp_report_versions:
        raise BrokerError("cannot read the policy: evidence: snp_report_versions is empty")
    for number, rule in enumerate(policy.resource, 1):
        if objection := _mistake(rule):
            raise BrokerError(f"cannot read the policy: resource {number}: {objection}")
    return policy


def _mistake(rule: Rule) -> str:
    """What is wrong with a rule whose members are of the right types; empty: nothing."""
    checks = [(_PATTERN, rule.path, "repository/type/tag")]
    checks += [(_KIND, tee, f"one of {', '.join(KINDS)}") for tee in rule.tee or ()]
    checks += [(_DIGEST, digest, "a digest in hex") for digest in rule.init_data or ()]
    checks += [(_IMAGE, image, "the digest of an image") for image in rule.images or ()]
    for pattern, text, what in checks:
        if not pattern.fullmatch(text):
            return f"{text!a} is not {what}"
    lists: dict[str, Collection[object] | None] = {
        "tee": rule.tee,
        "init_data": rule.init_data,
        "images": rule.images,
        **{f"the claim {name}": good for name, good in rule.claims.items()},
    }
    for name, known in lists.items():
        if known is not None and not known:
            return f"{name} is empty, so nobody gets it"
    return ""


class PolicyFile:
    """The policy as the file at `path` says it now."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._text = b""
        self._policy = parse(self._text)

    def current(self) -> Policy:
        """Raises BrokerError where the file cannot be read."""
        text = directory.read(self._path)
        # By content: two edits can have the same size and the same time.
        if text != self._text:
            self._policy = parse(text)
            self._text = text
        return self._policy

    def replace(self, text: bytes) -> None:
        """Put another policy in place. Raises BrokerError; then the old one stays."""
        if not text.strip():
            raise BrokerError("cannot use the policy: it is empty, and would deny everything")
        parse(text)
        try:
            directory.write(self._path, text)
        except OSError as error:
            raise BrokerError(f"cannot write {self._path}: {error.strerror}") from error
