"""What the cache is filled from: a registry, through skopeo, which knows this host's credentials,
mirrors, certificates and proxies (containers-auth.json(5), containers-registries.conf(5)).

Manifests come from `skopeo inspect --raw`, byte for byte. Blobs come from its image proxy: a socket
(SOCK_SEQPACKET) that takes JSON requests and answers with the read end of a pipe for each blob, so that
one process, one token and one connection serve all blobs of an image.

Nothing is verified here but by the cache: skopeo's policy for signatures is not asked, since it is the
guest's tenant who decides what may run.
"""

import os
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import msgspec
from sealrun_protocol import limits
from sealrun_protocol.decoding import from_json

from sealrun_runtime.cache.store import CacheFailed

SKOPEO: Final = "skopeo"
SECONDS: Final = 30.0  # without a byte: less than a guest waits for one
IDLE_SECONDS: Final = 10.0  # that skopeo waits for another blob of the image
CHUNK_BYTES: Final = 1 << 20
_REPLY_BYTES: Final = 64 << 10
_ERROR_CHARACTERS: Final = 400


class _Reply(msgspec.Struct):
    success: bool
    value: Any = None
    pipeid: int = 0
    error: str = ""


class Upstream:
    """One repository. For any number of threads; close it when done.

    repository: registry/repository. insecure: its registry may speak plain http, or have a
    certificate that nobody signed. authfile: of credentials; empty: where skopeo looks for it."""

    def __init__(self, repository: str, *, insecure: bool = False, authfile: str = "") -> None:
        self._repository = repository
        self._options = ["--tls-verify=false"] if insecure else []
        self._options += [f"--authfile={authfile}"] if authfile else []
        self._lock = threading.Lock()
        self._proxy: _Proxy | None = None
        self._users = self._uses = 0

    def manifest(self, version: str) -> bytes:
        """A manifest or index by tag or digest. Raises CacheFailed."""
        document = self._inspected("--raw", version)
        if len(document) > limits.MANIFEST_BYTES:
            raise CacheFailed(f"{version} has more than {limits.MANIFEST_BYTES} bytes")
        return document

    def config(self, version: str) -> bytes:
        """The configuration of the image for this platform. Raises CacheFailed."""
        return self._inspected("--config", version, "--raw")

    def _inspected(self, what: str, version: str, *more: str) -> bytes:
        command = [SKOPEO, "inspect", what, *more, *self._options, self._reference(version)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
            )
        except FileNotFoundError as error:
            raise CacheFailed("skopeo is not installed on this host") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CacheFailed(f"skopeo did not answer: {error}") from error
        if done.returncode:
            raise CacheFailed(_message(done.stderr))
        return done.stdout

    def blob(self, manifest: str, digest: str, size: int) -> Iterator[bytes]:
        """The bytes of a blob of the image with this manifest (tag or digest). Raises CacheFailed."""
        with self._lock:
            if self._proxy is None:
                self._proxy = _Proxy(self._options, self._reference(manifest))
            proxy = self._proxy
            self._users += 1
        try:
            yield from proxy.blob(digest, size)
        except (CacheFailed, OSError):
            with self._lock:
                if self._proxy is proxy:  # the next blob has a new one
                    self._proxy = None
            proxy.close()
            raise
        finally:
            self._release()

    def close(self) -> None:
        """End skopeo."""
        with self._lock:
            proxy, self._proxy = self._proxy, None
        if proxy is not None:
            proxy.close()

    def _release(self) -> None:
        """A blob has come, or never will. A sandbox lives for long after its last one."""
        with self._lock:
            self._users -= 1
            self._uses += 1
            if not self._users:
                timer = threading.Timer(IDLE_SECONDS, self._close_if_idle, [self._uses])
                timer.daemon = True
                timer.start()

    def _close_if_idle(self, uses: int) -> None:
        with self._lock:
            idle = not self._users and self._uses == uses
        if idle:
            self.close()

    def _reference(self, version: str) -> str:
        mark = "@" if version.startswith("sha256:") else ":"
        return f"docker://{self._repository}{mark}{version}"


class _Proxy:
    """A running `skopeo experimental-image-proxy` with an image open."""

    def __init__(self, options: list[str], reference: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket, self._lock = ours, threading.Lock()
        ours.settimeout(SECONDS)
        command = [SKOPEO, "--insecure-policy", "experimental-image-proxy", *options]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*command, f"--sockfd={theirs.fileno()}"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                ours.close()
                raise CacheFailed("skopeo is not installed on this host") from error
        try:
            self._ask("Initialize")
            self._image = self._ask("OpenImage", reference)[0].value
        except CacheFailed:
            self.close()
            raise

    def blob(self, digest: str, size: int) -> Iterator[bytes]:
        """Raises CacheFailed."""
        reply, pipe = self._ask("GetBlob", self._image, digest, size)
        if pipe is None:
            raise CacheFailed("skopeo gave no pipe")
        left = size
        try:
            # skopeo ends the pipe when it is told to, whatever came of the copying.
            while left and (data := _read(pipe, left)):
                left -= len(data)
                yield data
        finally:
            os.close(pipe)
            # Also where nobody wants the rest: a reader that is gone ends the copying.
            with suppress(CacheFailed):
                self._finished(reply.pipeid)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        with self._lock:  # whoever waits for an answer hears the end first
            self._socket.close()

    def _finished(self, pipe: int) -> None:
        self._ask("FinishPipe", pipe)

    def _ask(self, method: str, *arguments: object) -> tuple[_Reply, int | None]:
        request = msgspec.json.encode({"method": method, "args": arguments})
        try:
            with self._lock:
                self._socket.send(request)
                data, fds, _, _ = socket.recv_fds(self._socket, _REPLY_BYTES, 1)
        except OSError as error:
            raise CacheFailed(f"skopeo did not answer: {error}") from error
        try:
            reply = from_json(data, _Reply)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CacheFailed("skopeo ended, or is of another version") from error
        if not reply.success:
            raise CacheFailed(_shown(reply.error))
        return reply, fds[0] if fds else None


def _read(pipe: int, count: int) -> bytes:
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    if not poller.poll(SECONDS * 1000):
        raise CacheFailed(f"the registry sent nothing for {SECONDS:.0f} s")
    return os.read(pipe, min(count, CHUNK_BYTES))


def _message(stderr: bytes) -> str:
    """skopeo's last word, without what its logger puts around it."""
    line = stderr.decode(errors="replace").strip().rpartition("\n")[2]
    _, found, text = line.partition("msg=")
    try:  # its quotes are Go's, which are JSON's for what can be read
        return _shown(from_json(text, str)) if found else _shown(line)
    except msgspec.DecodeError:
        return _shown(text)


def _shown(text: str) -> str:
    return ascii(text[:_ERROR_CHARACTERS])[1:-1] or "skopeo failed"
