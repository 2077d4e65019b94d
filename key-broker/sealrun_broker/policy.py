"""policy.toml: which evidence counts, and who gets which resource. What is not allowed is denied.

    [evidence]
    insecure_sample = false        # evidence that proves nothing

    [[resource]]                   # any number; one that matches is enough
    path = "default/key/*"         # `*` stands for any characters of one part
    tee = ["snp", "tdx"]           # absent: every kind of evidence that counts
    init_data = ["9f86d08…"]       # hex digests (SHA-256, -384 or -512); absent: every init-data

The file is read again when it changes. One that cannot be read denies everything until it can.
"""

import re
import tomllib
from collections.abc import Collection
from typing import Final

import msgspec
from sealrun_protocol.resource_uri import ResourceName

from sealrun_broker.errors import BrokerError

_PATTERN: Final = re.compile(r"[A-Za-z0-9_.*-]+/[A-Za-z0-9_.*-]+/[A-Za-z0-9_.*-]+")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}")


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[evidence]`."""

    insecure_sample: bool = False


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[resource]]`."""

    path: str
    tee: tuple[str, ...] | None = None
    init_data: tuple[str, ...] | None = None

    def allows(self, name: ResourceName, tee: str, init_data: Collection[str]) -> bool:
        """Whether this rule alone gives `name` to evidence of kind `tee` and these digests."""
        return (
            self._covers(name)
            and (self.tee is None or tee in self.tee)
            and (self.init_data is None or not set(self.init_data).isdisjoint(init_data))
        )

    def _covers(self, name: ResourceName) -> bool:
        return all(
            re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), part)
            for pattern, part in zip(self.path.split("/"), name, strict=True)
        )


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    evidence: Evidence = Evidence()
    resource: tuple[Rule, ...] = ()

    def allows(self, name: ResourceName, tee: str, init_data: Collection[str]) -> bool:
        """Whether `name` may be given out. `init_data`: lower-case hex digests of the attested
        init-data, one per algorithm; empty where there was none."""
        return any(rule.allows(name, tee, init_data) for rule in self.resource)


def parse(text: bytes) -> Policy:
    """Raises BrokerError; its text names the place."""
    try:
        policy = msgspec.convert(tomllib.loads(text.decode()), Policy)
    except (ValueError, RecursionError) as error:
        raise BrokerError(f"cannot read the policy: {error}") from error
    for number, rule in enumerate(policy.resource, 1):
        if not _PATTERN.fullmatch(rule.path):
            raise BrokerError(
                f"cannot read the policy: resource {number}: {rule.path!a} is not repository/type/tag"
            )
        for digest in rule.init_data or ():
            if not _DIGEST.fullmatch(digest):
                raise BrokerError(
                    f"cannot read the policy: resource {number}: {digest!a} is not a digest in hex"
                )
    return policy


class PolicyFile:
    """The policy as the file at `path` says it now."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._text = b""
        self._policy = parse(self._text)

    def current(self) -> Policy:
        """Raises BrokerError where the file cannot be read."""
        try:
            with open(self._path, "rb") as stream:
                text = stream.read()
        except OSError as error:
            raise BrokerError(f"cannot read {self._path}: {error.strerror}") from error
        # By content: two edits can have the same size and the same time.
        if text != self._text:
            self._policy = parse(text)
            self._text = text
        return self._policy
