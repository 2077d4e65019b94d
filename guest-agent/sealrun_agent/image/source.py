"""Where an image's documents and blobs come from, of which nothing is believed.

A source is of one repository. What it promises: bytes are bounded, waiting ends, and every failure
names who failed. What it does not: content. Digests are checked by whoever asked for them.
"""

from typing import Protocol

from sealrun_agent.image.manifest import Descriptor
from sealrun_agent.image.stream import Chunks


class Source(Protocol):
    """One request at a time; close it when done."""

    def manifest(self, version: str) -> tuple[bytes, str]:
        """A manifest or index by tag or digest: its bytes and its Content-Type, which may be empty.
        Raises PullError, VerifyError(LIMIT_EXCEEDED)."""

    def blob(self, descriptor: Descriptor, what: str) -> Chunks:
        """A blob's bytes, exactly as many as the descriptor says. what: it, in errors. Raises
        PullError, VerifyError(DIGEST_MISMATCH) where the source has more or fewer."""

    def second_chance(self, descriptor: Descriptor) -> bool:
        """The blob was not what the descriptor says: whether it will come from elsewhere now."""

    def is_cached(self, descriptor: Descriptor) -> bool:
        """Whether the blob comes, or came, from the host's cache."""

    def close(self) -> None:
        """Let go of connections."""
