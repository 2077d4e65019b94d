"""Images through the host's cache: each byte leaves the registry once, and none is believed."""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from fixtures import descriptors, layers
from fixtures import registry as registries
from fixtures.pulling import Puller
from fixtures.registry import Registry
from fixtures.shim import running, wait
from sealrun_agent.errors import AgentError, DialFailed
from sealrun_agent.image.pull import ImagePolicy
from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode
from sealrun_runtime.cache import delivery
from sealrun_runtime.cache.delivery import Blob
from sealrun_runtime.cache.store import Cache, CacheFailed
from sealrun_runtime.cache.upstream import Upstream
from simulators.guest import Guest

pytestmark = [pytest.mark.registry, pytest.mark.root]

Fetch = Callable[[str], socket.socket]
BIG = os.urandom(3_000_000)


class Image:
    """An image of three layers in a registry of its own repository."""

    def __init__(self, registry: Registry, directory: Path, name: str) -> None:
        tars = [
            layers.tar([layers.file("big", BIG)]),
            layers.tar([layers.file("name", name.encode())]),
            layers.tar([layers.file("last", b"3")]),
        ]
        layers.write_layout(directory / "layout", tars)
        self.name = name
        self.registry = registry
        self.digest = registries.push(directory / "layout", registry, f"{name}:1")
        self.reference = f"{registry.address}/{name}@{self.digest}"
        self.repository = f"{registry.address}/{name}"

    def policy(self) -> ImagePolicy:
        return ImagePolicy((self.registry.address,))

    def largest(self) -> tuple[Blob, Path]:
        """Its largest layer, and the registry's file of it."""
        path = max(self.registry.storage.rglob("data"), key=lambda path: path.stat().st_size)
        return Blob(f"sha256:{path.parent.name}", path.stat().st_size, self.digest), path

    def requests(self) -> int:
        return self.registry.requests(f"/v2/{self.name}/")


@pytest.fixture
def image(plain_registry: Registry, tmp_path: Path, request: pytest.FixtureRequest) -> Image:
    name = "cached/" + "".join(c for c in request.node.name.lower() if c.isalnum())[:40]
    return Image(plain_registry, tmp_path, name)


@contextmanager
def puller(root: Path, fetch: Fetch | None = None) -> Iterator[Puller]:
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(root)], check=True)
    try:
        yield Puller(root, fetch=fetch)
    finally:
        subprocess.run(["umount", "-R", str(root)], check=True)


def upstream(image: Image) -> Upstream:
    return Upstream(image.repository, insecure=True)


def honest(image: Image, cache: Cache, source: Upstream) -> Fetch:
    """The host, without a channel in between."""
    sizes = {
        f"sha256:{path.parent.name}": path.stat().st_size
        for path in image.registry.storage.rglob("data")
    }

    def fetch(digest: str) -> socket.socket:
        near, far = socket.socketpair()

        def send() -> None:
            with far:
                if digest == image.digest:
                    far.sendall(delivery.manifest(cache, source, digest))
                else:
                    blob = Blob(digest, sizes[digest], image.digest)
                    delivery.deliver(cache, source, blob, far, print)

        threading.Thread(target=send, daemon=True).start()
        return near

    return fetch


def content(image_layers: tuple[str, ...]) -> bytes:
    return b"".join(
        Path(layer, name).read_bytes()
        for layer, name in zip(image_layers, ("big", "name", "last"), strict=True)
    )


def test_the_second_sandbox_reads_no_byte_from_the_registry(image: Image, tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), 64 << 20)
    with closing(upstream(image)) as source, puller(tmp_path / "one") as one:
        one.fetch = honest(image, cache, source)
        first = one(image.reference, image.policy())
        assert content(first.layers) == BIG + image.name.encode() + b"3"
    wait(lambda: len(cache.entries()) == 5)  # and the manifest
    asked = image.requests()
    assert image.registry.requests(f"/v2/{image.name}/blobs") == 4  # three layers, a configuration
    with closing(upstream(image)) as source, puller(tmp_path / "two") as two:
        two.fetch = honest(image, cache, source)
        second = two(image.reference, image.policy())
        assert content(second.layers) == BIG + image.name.encode() + b"3"
    assert image.requests() == asked


def test_two_hosts_processes_fill_a_blob_once(image: Image, tmp_path: Path) -> None:
    """Readers with caches, upstreams and descriptors of their own, as shims have."""
    manifest = layers.digest(image.registry.blob(image.digest).read_bytes())
    assert manifest == image.digest
    blob, largest = image.largest()
    received: list[bytes] = []

    def read() -> None:
        near, far = socket.socketpair()
        cache = Cache(str(tmp_path / "cache"), 64 << 20)

        def send() -> None:
            with far, closing(upstream(image)) as source:
                delivery.deliver(cache, source, blob, far, print)

        sender = threading.Thread(target=send)
        sender.start()
        with near, near.makefile("rb") as file:
            received.append(file.read())
        sender.join()

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert received == [largest.read_bytes()] * 4
    assert image.registry.requests(f"/v2/{image.name}/blobs/{blob.digest}") == 1


def test_a_fill_that_fails_is_an_error_and_leaves_nothing(image: Image, tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), 64 << 20)
    unknown = Blob(f"sha256:{'0' * 64}", 10, image.digest)
    near, far = socket.socketpair()
    with near, far, closing(upstream(image)) as source:
        with pytest.raises(CacheFailed, match="beyond byte 0 of 10"):
            delivery.deliver(cache, source, unknown, far, print)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_skopeo_goes_when_nothing_is_wanted_of_it(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever numbers the descriptors of its pipes have."""
    monkeypatch.setattr("sealrun_runtime.cache.upstream.IDLE_SECONDS", 0.2)
    blob, largest = image.largest()
    with descriptors.many_open(), closing(upstream(image)) as source:
        for _ in range(2):  # and comes back
            chunks = source.blob(image.digest, blob.digest, blob.size)
            first = next(chunks)
            assert _skopeos()
            assert first + b"".join(chunks) == largest.read_bytes()
            wait(lambda: not _skopeos())


def _skopeos() -> list[str]:
    """Image proxies that are children of ours."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    names = []
    for pid in children:
        with suppress(OSError):  # it has ended
            names.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode())
    return [name for name in names if "experimental-image-proxy" in name]


HALF_FILLED = """
import sys, time
from sealrun_runtime.cache.store import Cache
with Cache(sys.argv[1], 1 << 26).fill(sys.argv[2], int(sys.argv[3])) as filling:
    filling.write(open(sys.argv[4], "rb").read()[:1000])
    print("some", flush=True)
    time.sleep(600)
"""


def test_a_reader_outlives_the_shim_that_fills(image: Image, tmp_path: Path) -> None:
    """kill -9 in the middle: whoever waits for the rest fetches it, and goes on where it was."""
    blob, largest = image.largest()
    cache = Cache(str(tmp_path / "cache"), 64 << 20)
    given = [str(tmp_path / "cache"), blob.digest, str(blob.size), str(largest)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    near, far = socket.socketpair()
    received: list[bytes] = []

    def deliver() -> None:
        with far, closing(upstream(image)) as source:
            delivery.deliver(cache, source, blob, far, received_reports.append)

    received_reports: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", HALF_FILLED, *given], stdout=subprocess.PIPE, env=environment
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"some\n"
        reader = threading.Thread(target=deliver)
        reader.start()
        with near:
            received.append(near.recv(1000, socket.MSG_WAITALL))
            other.kill()
            with near.makefile("rb") as file:
                received.append(file.read())
        reader.join()
    assert b"".join(received) == largest.read_bytes()
    wait(lambda: cache.open(blob.digest) is not None)
    assert os.listdir(tmp_path / "cache/filling") == []


def test_a_full_disk_ends_the_delivery_and_leaves_nothing(image: Image, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)], check=True)
    try:
        cache = Cache(str(directory), 64 << 20)
        blob, _ = image.largest()
        said: list[str] = []
        near, far = socket.socketpair()
        with near, far, closing(upstream(image)) as source:
            threading.Thread(target=near.makefile("rb").read, daemon=True).start()
            with pytest.raises(CacheFailed, match="could not be fetched beyond"):
                delivery.deliver(cache, source, blob, far, said.append)
        assert "No space left" in said[0]
        assert cache.size() == 0
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("change", ["other", "short"])
def test_what_a_registry_changed_gets_no_name_in_the_cache(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    if change == "short":  # whose rest is waited for
        monkeypatch.setattr("sealrun_runtime.cache.upstream.SECONDS", 2.0)
    layer = json.loads(image.registry.blob(image.digest).read_bytes())["layers"][1]
    file = image.registry.blob(layer["digest"])
    file.write_bytes(bytes(layer["size"] if change == "other" else layer["size"] // 2))
    cache = Cache(str(tmp_path / "cache"), 64 << 20)
    blob = Blob(layer["digest"], layer["size"], image.digest)
    said: list[str] = []
    near, far = socket.socketpair()
    with near, far, closing(upstream(image)) as source:
        if change == "other":  # the guest will see it, too
            delivery.deliver(cache, source, blob, far, said.append)
        else:
            with pytest.raises(CacheFailed, match="beyond byte"):
                delivery.deliver(cache, source, blob, far, said.append)
        wait(lambda: bool(said))
    assert ("came as" in said[0]) is (change == "other")
    wait(lambda: cache.size() == 0)


# --- a host that lies --------------------------------------------------------------------------------


def sending(data: Callable[[str], bytes], *, then_wait: bool = False) -> Fetch:
    def fetch(digest: str) -> socket.socket:
        near, far = socket.socketpair()

        def send() -> None:
            try:
                far.sendall(data(digest))
                if then_wait:
                    far.recv(1)
            except OSError:
                pass
            far.close()

        threading.Thread(target=send, daemon=True).start()
        return near

    return fetch


def refusing(digest: str) -> socket.socket:
    raise DialFailed(f"{digest}: not here", refused=True)


def lies(image: Image) -> dict[str, Fetch]:
    def true(digest: str) -> bytes:
        return image.registry.blob(digest).read_bytes()

    def is_layer(digest: str) -> bool:
        return true(digest)[:2] == b"\x1f\x8b"

    named = [layer["digest"] for layer in json.loads(true(image.digest))["layers"]]
    evil = layers.compress(layers.tar([layers.file("../../escaped", b"x" * 1000)]), "gzip")
    bomb = gzip.compress(layers.tar([layers.file("big", bytes(32 << 20))]), 1)
    return {
        "refuses": refusing,
        "nothing": sending(lambda _: b""),
        "wrong-bytes": sending(lambda digest: bytes(len(true(digest)))),
        "last-byte": sending(lambda digest: true(digest)[:-1] + b"\0"),
        "short": sending(lambda digest: true(digest)[: len(true(digest)) // 2]),
        "endless": sending(lambda digest: true(digest) + bytes(16 << 20)),
        "wrong-layers": sending(
            lambda digest: bytes(len(true(digest))) if is_layer(digest) else true(digest)
        ),
        "short-layers": sending(
            lambda digest: true(digest)[:100] if is_layer(digest) else true(digest)
        ),
        "evil-layers": sending(lambda digest: evil if is_layer(digest) else true(digest)),
        "bombs": sending(lambda digest: bomb if is_layer(digest) else true(digest)),
        "swapped-layers": sending(
            lambda digest: true(named[named.index(digest) - 1]) if digest in named else true(digest)
        ),
    }


@pytest.mark.parametrize(
    "lie",
    [
        "refuses",
        "nothing",
        "wrong-bytes",
        "last-byte",
        "short",
        "endless",
        "wrong-layers",
        "short-layers",
        "evil-layers",
        "bombs",
        "swapped-layers",
    ],
)
def test_a_lying_cache_costs_a_way_to_the_registry(image: Image, tmp_path: Path, lie: str) -> None:
    with puller(tmp_path / "store", lies(image)[lie]) as pull:
        pulled = pull(image.reference, image.policy())
        assert content(pulled.layers) == BIG + image.name.encode() + b"3"
        assert os.listdir(tmp_path / "store/staging") == []
        said = [text for _, text, _, _ in pull.told if "the registry is asked" in text]
        assert len(said) == 1, pull.told


def test_a_lying_cache_and_no_registry_are_an_error(image: Image, tmp_path: Path) -> None:
    def dead(host: str, port: int) -> socket.socket:
        raise DialFailed("gone", refused=False)

    with puller(tmp_path / "store", lies(image)["wrong-layers"]) as pull:
        pull.dial = dead
        with pytest.raises(AgentError) as caught:
            pull(image.reference, image.policy())
        assert caught.value.code is ErrorCode.REGISTRY_UNREACHABLE
        assert pull.left() == []


def test_a_cache_that_holds_us_up_is_given_up(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HTTP_SECONDS", 2.0)
    stuck = sending(lambda digest: image.registry.blob(digest).read_bytes()[:10], then_wait=True)
    with puller(tmp_path / "store", stuck) as pull:
        pulled = pull(image.reference, image.policy())
        assert content(pulled.layers) == BIG + image.name.encode() + b"3"


def test_a_tag_is_the_registrys_to_resolve(image: Image, tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(digest: str) -> socket.socket:
        asked.append(digest)
        return refusing(digest)

    with puller(tmp_path / "store", fetch) as pull:
        pull(f"{image.repository}:1", image.policy())
    assert image.digest not in asked
    assert asked


# --- sharing inside a pod ----------------------------------------------------------------------------


def test_a_layer_is_fetched_once_in_a_sandbox(image: Image, tmp_path: Path) -> None:
    """Two containers of a pod at once: one store, two workers."""
    with puller(tmp_path / "store") as pull:
        results: list[tuple[str, ...]] = []

        def work() -> None:
            results.append(pull(image.reference, image.policy()).layers)

        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert results[0] == results[1]
        manifest = image.registry.blob(image.digest).read_text()
        for path in image.registry.storage.rglob("data"):
            digest = f"sha256:{path.parent.name}"
            if digest in manifest and path.read_bytes()[:2] == b"\x1f\x8b":
                assert image.registry.requests(f"/v2/{image.name}/blobs/{digest}") == 1


# --- the shim ----------------------------------------------------------------------------------------


@contextmanager
def guest_of(image: Image, tmp_path: Path, reference: str = "") -> Iterator[Guest]:
    with (
        running(
            tmp_path / "state",
            image=reference or image.reference,
            insecure=(image.registry.address,),
            cache=tmp_path / "cache",
        ) as shim,
        shim.guest() as guest,
    ):
        shim.create()
        guest.boot()
        assert guest.expect(messages.CreateContainer).cached
        yield guest


def ask(guest: Guest, image: str, digest: str, stream: int) -> bytes | messages.StreamReset:
    guest.send(messages.OpenContent(stream=stream, image=image, digest=digest))
    while True:
        answer = guest.receive()
        if isinstance(answer, messages.StreamReset):
            return answer
        if isinstance(answer, messages.TunnelOpened):
            return guest.input(stream)


def test_the_shim_delivers_what_the_image_consists_of(image: Image, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with guest_of(image, tmp_path) as guest:
        manifest = ask(guest, image.reference, image.digest, 1)
        assert manifest == image.registry.blob(image.digest).read_bytes()
        number = 3
        for path in image.registry.storage.rglob("data"):
            digest = f"sha256:{path.parent.name}"
            if digest.encode() in manifest:
                assert ask(guest, image.reference, digest, number) == path.read_bytes()
                number += 2
        assert number == 3 + 2 * 4


def test_a_tag_leads_to_its_image(image: Image, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    reference = f"{image.repository}:1"
    config = next(
        f"sha256:{path.parent.name}"
        for path in image.registry.storage.rglob("data")
        if path.parent.name in image.registry.blob(image.digest).read_text()
        and path.read_bytes()[:1] == b"{"
    )
    with guest_of(image, tmp_path, reference) as guest:
        assert ask(guest, reference, config, 1) == image.registry.blob(config).read_bytes()


def test_a_guest_gets_nothing_of_other_images(
    image: Image, plain_registry: Registry, tmp_path: Path
) -> None:
    other_directory = tmp_path / "other"
    other_directory.mkdir()
    other = Image(plain_registry, other_directory, "cached/other")
    (tmp_path / "state").mkdir()
    with guest_of(image, tmp_path) as guest:
        before = other.requests()
        wanted = [
            (image.reference, other.digest),  # another image's digest
            (other.reference, other.digest),  # another image
            (image.reference, "sha256:../../../etc/passwd"),
            (image.reference, ""),
        ]
        for number, (name, digest) in enumerate(wanted):
            answer = ask(guest, name, digest, 2 * number + 1)
            assert isinstance(answer, messages.StreamReset), (name, digest)
            assert answer.code is ErrorCode.ENDPOINT_REFUSED
        assert other.requests() == before
