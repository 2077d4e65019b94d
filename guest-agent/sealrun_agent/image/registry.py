"""Where an image comes from: its mirrors and its registry, one after the other.

Whatever one of them lacks, refuses or breaks off, the next one is asked for; it continues where the other
stopped. Nobody is believed: whoever asked for a digest checks it, and a manifest that is not the one asked
for by digest counts as missing. The error of the last one, the registry itself, is told, with what became
of the mirrors.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from sealrun_protocol import registries
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import PullError, VerifyError
from sealrun_agent.image.authorization import Authorizations
from sealrun_agent.image.http_client import HttpClient
from sealrun_agent.image.manifest import Descriptor
from sealrun_agent.image.policy import ImagePolicy
from sealrun_agent.image.reference import Reference
from sealrun_agent.image.repository import Repository
from sealrun_agent.image.stream import Chunks
from sealrun_agent.image.ways import Ways


class Registry:
    """The repository of `reference`. One request at a time; close it when done."""

    def __init__(
        self, reference: Reference, policy: ImagePolicy, ways: Ways, authorizations: Authorizations
    ) -> None:
        """Raises PullError(REGISTRY_BLOCKED)."""
        self.http = HttpClient(policy, ways)
        try:
            sources = registries.sources(
                policy.registries, reference.name, reference.tag, reference.digest
            )
        except registries.Blocked as error:
            raise PullError(
                ErrorCode.REGISTRY_BLOCKED, f"cannot fetch {reference}: {error} by the init-data"
            ) from error
        self._repositories = [Repository(source, self.http, authorizations) for source in sources]
        self._failures: list[str] = []

    def close(self) -> None:
        """End the connections."""
        self.http.close()

    @property
    def name(self) -> str:
        """registry/repository of whoever is asked now."""
        return self._repositories[0].name

    def manifest(self, version: str) -> tuple[bytes, str]:
        """A manifest or index by tag or digest: its bytes and its Content-Type. Raises PullError,
        VerifyError(LIMIT_EXCEEDED, DIGEST_MISMATCH)."""
        while True:
            with self._or_the_next_one():
                document, content_type = self._repositories[0].manifest(version)
                actual = f"sha256:{hashlib.sha256(document).hexdigest()}"
                if version.startswith("sha256:") and actual != version:
                    raise VerifyError(
                        ErrorCode.DIGEST_MISMATCH,
                        f"manifest of {self.name} is {actual}, not {version}",
                    )
                return document, content_type

    def blob(self, descriptor: Descriptor, what: str) -> Chunks:
        """A blob's bytes, exactly as many as the descriptor says. Raises PullError,
        VerifyError(DIGEST_MISMATCH) where the registry has more or fewer."""
        position = 0
        while position < descriptor.size:
            with self._or_the_next_one():
                for chunk in self._repositories[0].blob(descriptor, position, what):
                    position += len(chunk)
                    yield chunk

    def second_chance(self, descriptor: Descriptor) -> bool:
        """See Source."""
        if len(self._repositories) == 1:
            return False
        self._failures.append(f"{self.name} has something else for {descriptor.digest}")
        del self._repositories[0]
        return True

    def is_cached(self, _descriptor: Descriptor) -> bool:
        """See Source."""
        return False

    @contextmanager
    def _or_the_next_one(self) -> Iterator[None]:
        """Forget a source that fails, unless it is the last."""
        try:
            yield
        except (PullError, VerifyError) as error:
            if len(self._repositories) == 1:
                if self._failures:
                    tried = "; ".join(self._failures)[:300]
                    raise type(error)(error.code, f"{error} (before that: {tried})") from error
                raise
            self._failures.append(str(error)[:150])
            del self._repositories[0]
