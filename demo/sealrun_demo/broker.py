"""Our key broker, as its command line and its administrators' interface offer it."""

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from sealrun_demo import services, telling, tools

POLICY = """[evidence]
insecure_sample = true   # this demonstration has no TEE; never do this in earnest

[[resource]]
path = "{resource}"
init_data = ["{digest}"]   # whoever runs with another init-data gets nothing
"""


class Broker:
    """A running broker. url: what the guest is told; certificate: PEM of its CA."""

    def __init__(self, program: str, directory: str, url: str) -> None:
        self._program = program
        self._directory = directory
        self._authority = os.path.join(directory, "tls/ca.pem")
        self.url = url
        with open(self._authority, encoding="ascii") as stream:
            self.certificate = stream.read()

    def store(self, name: str, path: str) -> None:
        """Store the content of a file as the resource `name`. Raises telling.Failed."""
        telling.output(tools.run([self._program, "add-resource", self._directory, name, path]))

    def allow(self, name: str, digest: str) -> None:
        """Give the resource `name` to sample evidence with this init-data, and nothing else."""
        policy = POLICY.format(resource=name, digest=digest)
        with open(os.path.join(self._directory, "policy.toml"), "w", encoding="utf-8") as stream:
            stream.write(policy)
        telling.output(policy)

    def remove(self, name: str) -> None:
        """Remove the resource `name`, as an administrator over TLS. Raises telling.Failed."""
        token = tools.run([self._program, "admin-token", self._directory], show=False).strip()
        url = f"{self.url}/kbs/v0/resource/{name}"
        telling.tell(f"DELETE {url}")
        request = urllib.request.Request(
            url, method="DELETE", headers={"Authorization": f"Bearer {token}"}
        )
        trust = ssl.create_default_context(cafile=self._authority)
        try:
            with urllib.request.urlopen(request, timeout=30, context=trust):
                pass
        except urllib.error.URLError as error:
            raise telling.Failed(f"cannot remove {name} from the broker: {error}") from error

    def log(self) -> str:
        """What was asked of it, and what it decided."""
        return tools.run([self._program, "log", self._directory], show=False)


@contextmanager
def serving(program: str, directory: str) -> Iterator[Broker]:
    """A new broker on loopback, for as long as the block lasts."""
    tools.run([program, "init", directory])
    argv = [program, "serve", directory, "--listen", "127.0.0.1:0"]
    log = os.path.join(directory, "serve.log")
    with services.serving(argv, log, r"listening on (https://127\.0\.0\.1:\d+)") as url:
        yield Broker(program, directory, url)
