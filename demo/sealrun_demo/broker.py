"""Our key broker, as its command line and its administrators' interface offer it."""

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sealrun_demo import services, telling, tools

POLICY = """[evidence]
insecure_sample = true   # this demonstration has no TEE; never do this in earnest

[[resource]]
path = "{resource}"
init_data = ["{digest}"]   # whoever runs with another init-data gets nothing
"""
POLICY_FOR_TPM = """[[resource]]
path = "{resource}"
tee = ["tpm"]
init_data = ["{digest}"]   # whoever runs with another init-data gets nothing
images = ["{image}"]       # nor who pulled another image
"""


SESSION_SECONDS = 30  # and a second more is a token good; so that nobody has to wait for its end


class Broker:
    """A running broker. url: what the guest is told; certificate: PEM of its CA, whose file is
    `authority`."""

    def __init__(self, program: str, directory: str, url: str) -> None:
        self._program = program
        self._directory = directory
        self.authority = os.path.join(directory, "tls/ca.pem")
        self.url = url
        with open(self.authority, encoding="ascii") as stream:
            self.certificate = stream.read()

    def store(self, name: str, path: str) -> None:
        """Store the content of a file as the resource `name`. Raises telling.Failed."""
        telling.output(tools.run([self._program, "add-resource", self._directory, name, path]))

    def allow(self, name: str, digest: str) -> None:
        """Give the resource `name` to sample evidence with this init-data, and nothing else."""
        self._set(POLICY.format(resource=name, digest=digest))

    def allow_tpm(self, name: str, digest: str, image: str) -> None:
        """Give the resource `name` to VMs with a TPM, this init-data and this image."""
        self._set(POLICY_FOR_TPM.format(resource=name, digest=digest, image=image))

    def expect(self, name: str, values: Sequence[str]) -> None:
        """Set a reference value: what a good VM is. Raises telling.Failed."""
        tools.run([self._program, "add-reference", self._directory, name, *values], show=False)

    def _set(self, policy: str) -> None:
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
        trust = ssl.create_default_context(cafile=self.authority)
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
    argv += ["--session-seconds", str(SESSION_SECONDS)]
    log = os.path.join(directory, "serve.log")
    with services.serving(argv, log, r"listening on (https://127\.0\.0\.1:\d+)") as url:
        yield Broker(program, directory, url)
