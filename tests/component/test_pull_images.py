"""Real images: pushed and encrypted by skopeo into a real docker-registry, pulled by us, and compared
inode by inode with what umoci unpacks."""

import json
import os
import random
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import inodes, layers
from fixtures import registry as registries
from fixtures.pulling import Puller
from fixtures.registry import KeyPair, Registry
from fixtures.tunnel import tunnel
from sealrun_agent.errors import AgentError
from sealrun_agent.image.pull import Image, ImagePolicy
from sealrun_protocol.errors import ErrorCode, Phase

pytestmark = [pytest.mark.registry, pytest.mark.root]

NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0).decode("latin-1")
NOISE = random.Random(2).randbytes(3_000_000)

LOWEST = [
    layers.directory("./", mode=0o755),
    layers.directory("etc", mode=0o755, mtime=1_500_000_000),
    layers.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
    layers.file("etc/shadow", b"root:*::\n", mode=0o640, gid=42),
    layers.directory("tmp", mode=0o1777),
    layers.directory("usr"),
    layers.directory("usr/bin"),
    layers.file("usr/bin/su", b"\x7fELF", mode=0o4755),
    layers.file("usr/bin/wall", b"\x7fELF", mode=0o2755, gid=5),
    layers.link("usr/bin/su-link", "usr/bin/su"),
    layers.file(
        "usr/bin/ping",
        b"\x7fELF",
        mode=0o755,
        pax_headers={"SCHILY.xattr.security.capability": NET_RAW, "SCHILY.xattr.user.a": "b"},
    ),
    layers.symlink("bin", "usr/bin"),
    layers.symlink("absolute", "/../../etc/passwd"),
    layers.file("big", NOISE, pax_headers={"mtime": "1400000000.123456789"}),
    layers.file("old", b"1"),
    layers.directory("gone"),
    layers.file("gone/file", b"1"),
    layers.directory("emptied"),
    layers.file("emptied/one", b"1"),
    layers.directory("emptied/two"),
    layers.directory("n" * 200),
    layers.file("n" * 200 + "/" + "m" * 200, b"long"),
    layers.file("unicode-\u00e4\u4e16", b"1"),
    layers.file("bytes-\udcff\udcfe", b"1"),
    layers.directory("dev"),
    layers.device("dev/null", tarfile.CHRTYPE, 1, 3, mode=0o666),
    layers.device("dev/loop", tarfile.BLKTYPE, 7, 0, mode=0o660, gid=6),
    layers.member("dev/fifo", tarfile.FIFOTYPE, mode=0o600, uid=33),
    layers.file("becomes-directory", b"1"),
    layers.directory("becomes-file/full"),
]
MIDDLE = [
    layers.file(".wh.old"),
    layers.file(".wh.gone"),
    layers.directory("emptied", mode=0o700),
    layers.file("emptied/.wh..wh..opq"),
    layers.file("emptied/three", b"3"),
    layers.directory("becomes-directory"),
    layers.file("becomes-directory/x", b"2"),
    layers.file("becomes-file", b"2"),
    layers.directory("etc", mode=0o755, mtime=1_550_000_000),
    layers.file("etc/passwd", b"root:x:0:0:root:/root:/bin/bash\n", uid=1, mtime=1_550_000_000),
]
HIGHEST = [
    layers.directory("tmp", mode=0o1777),
    layers.file("tmp/made", b"3"),
    layers.directory("gone", mode=0o711),
    layers.file("gone/again", b"3"),
]
TARS = [layers.tar(members) for members in (LOWEST, MIDDLE, HIGHEST)]


@pytest.fixture
def puller(tmp_path: Path) -> Iterator[Puller]:
    """Pulls into a tmpfs, as in the guest."""
    directory = tmp_path / "store"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(directory)], check=True)
    yield Puller(directory)
    subprocess.run(["umount", "-R", str(directory)], check=True)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    directory = tmp_path / "layout"
    layers.write_layout(
        directory, TARS, process={"Entrypoint": ["/bin/sh"], "Env": ["A=b"], "User": "7"}
    )
    return directory


def trusting(registry: Registry, **policy: Any) -> ImagePolicy:
    return ImagePolicy((registry.address,), **{"insecure_unpinned_keys": True, **policy})


def unpacked_by_umoci(layout: Path, bundle: Path) -> Path:
    registries.run(["umoci", "unpack", "--image", f"{layout}:latest", str(bundle)])
    return bundle / "rootfs"


def test_the_tree_is_that_of_umoci(
    plain_registry: Registry, puller: Puller, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    digest = layers.write_layout(layout, TARS)
    assert registries.push(layout, plain_registry, "compare/plain:1") == digest
    image = puller(f"{plain_registry.address}/compare/plain:1", trusting(plain_registry))
    assert image.digest == digest
    rootfs = Path(puller.store.mount(image.layers, "one"))
    inodes.assert_same(rootfs, unpacked_by_umoci(layout, tmp_path / "bundle"))
    # The union must not depend on what overlayfs does with inode numbers of its lower layers.
    assert (rootfs / "usr/bin/su").stat().st_ino == (rootfs / "usr/bin/su-link").stat().st_ino
    puller.store.unmount("one")


def test_a_tree_of_the_distribution_is_that_of_umoci(
    plain_registry: Registry, puller: Puller, tmp_path: Path
) -> None:
    """What GNU tar writes of real directories, with all their links and owners."""
    names = ["etc", "usr/share/zoneinfo", "usr/lib/systemd", "var/lib/dpkg/alternatives"]
    present = [name for name in names if Path("/", name).exists()]
    data = subprocess.run(
        ["tar", "-C", "/", "--format=posix", "--xattrs", "-cf", "-", *present],
        check=True,
        capture_output=True,
    ).stdout
    layout = tmp_path / "layout"
    layers.write_layout(layout, [data])
    registries.push(layout, plain_registry, "compare/distribution:1")
    image = puller(f"{plain_registry.address}/compare/distribution:1", trusting(plain_registry))
    ours, theirs = (
        inodes.tree(Path(image.layers[0])),
        inodes.tree(unpacked_by_umoci(layout, tmp_path / "bundle")),
    )
    assert sorted(ours) == sorted(theirs)
    # Parents without an entry of their own get what nobody said anything about gets.
    explicit = {os.fsencode(name) for name in present}
    implicit = {name for name in ours if any(one.startswith(name + b"/") for one in explicit)}
    for name in ours.keys() - implicit:
        assert ours[name] == theirs[name], name


def test_an_encrypted_image(
    plain_registry: Registry, puller: Puller, layout: Path, image_key: KeyPair, tmp_path: Path
) -> None:
    digest = registries.push(layout, plain_registry, "sealed/one:1", encrypt_for=[image_key])
    manifest = json.loads(plain_registry.blob(digest).read_bytes())
    assert all(layer["mediaType"].endswith("+encrypted") for layer in manifest["layers"])
    puller.keys = [image_key.private.read_bytes()]
    image = puller(f"{plain_registry.address}/sealed/one:1", trusting(plain_registry))
    assert image.digest == digest
    assert puller.keys_asked == 1
    rootfs = Path(puller.store.mount(image.layers, "one"))
    inodes.assert_same(rootfs, unpacked_by_umoci(layout, tmp_path / "bundle"))
    puller.store.unmount("one")
    assert image.config.config is not None
    assert image.config.config.entrypoint == ("/bin/sh",)
    assert image.config.config.env == ("A=b",)


def test_progress_tells_every_layer_to_its_end(
    plain_registry: Registry, puller: Puller, layout: Path, image_key: KeyPair
) -> None:
    registries.push(layout, plain_registry, "sealed/progress:1", encrypt_for=[image_key])
    puller.keys = [image_key.private.read_bytes()]
    puller(f"{plain_registry.address}/sealed/progress:1", trusting(plain_registry))
    ends = [(text.partition(" at ")[0], done) for phase, text, done, total in puller.told
            if phase is Phase.PULL and total and done == total]  # fmt: skip
    assert [text for text, _ in ends] == ["layer 1 of 3", "layer 2 of 3", "layer 3 of 3"]
    assert Phase.DECRYPT in [phase for phase, *_ in puller.told]
    assert len(puller.told) < 100


def test_several_recipients_of_both_kinds(
    plain_registry: Registry, puller: Puller, layout: Path, image_key: KeyPair, tmp_path: Path
) -> None:
    curve = registries.key_pair(tmp_path, "curve", curve=True)
    registries.push(layout, plain_registry, "sealed/many:1", encrypt_for=[curve, image_key])
    stranger = registries.key_pair(tmp_path, "stranger")
    reference = f"{plain_registry.address}/sealed/many:1"
    for number, key in enumerate((curve, image_key)):
        one = Puller(
            tmp_path / str(number), [stranger.private.read_bytes(), key.private.read_bytes()]
        )
        one(reference, trusting(plain_registry))
    puller.keys = [stranger.private.read_bytes()]
    error = puller.refused(reference, trusting(plain_registry))
    assert (error.code, error.phase) == (ErrorCode.KEY_WRONG, Phase.DECRYPT)
    puller.keys = []
    assert puller.refused(reference, trusting(plain_registry)).code is (
        ErrorCode.KEY_NOT_CONFIGURED
    )


def test_a_partly_encrypted_image(
    plain_registry: Registry, puller: Puller, layout: Path, image_key: KeyPair
) -> None:
    registries.push(
        layout,
        plain_registry,
        "sealed/partly:1",
        encrypt_for=[image_key],
        options=["--encrypt-layer", "1"],
    )
    puller.keys = [image_key.private.read_bytes()]
    image = puller(f"{plain_registry.address}/sealed/partly:1", trusting(plain_registry))
    assert (Path(image.layers[1]) / "emptied/three").read_bytes() == b"3"


def test_keys_need_a_pin(
    plain_registry: Registry, puller: Puller, layout: Path, image_key: KeyPair
) -> None:
    digest = registries.push(layout, plain_registry, "sealed/pin:1", encrypt_for=[image_key])
    name = f"{plain_registry.address}/sealed/pin"
    puller.keys = [image_key.private.read_bytes()]
    for allowed in (None, (name,), (f"{name}:1",), (f"{plain_registry.address}/sealed/*",)):
        policy = trusting(plain_registry, allowed=allowed, insecure_unpinned_keys=False)
        error = puller.refused(f"{name}:1", policy)
        assert error.code is ErrorCode.IMAGE_NOT_ALLOWED and digest in str(error), allowed
    pinned = trusting(plain_registry, allowed=(f"{name}@{digest}",), insecure_unpinned_keys=False)
    assert puller(f"{name}:1", pinned).digest == digest


def test_blobs_that_were_changed_on_the_registrys_disk(
    tmp_path: Path, puller: Puller, layout: Path, image_key: KeyPair
) -> None:
    with registries.serve(tmp_path / "registry") as registry:
        digest = registries.push(layout, registry, "sealed/one:1", encrypt_for=[image_key])
        manifest = json.loads(registry.blob(digest).read_bytes())
        blob = registry.blob(manifest["layers"][0]["digest"])
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
        puller.keys = [image_key.private.read_bytes()]
        error = puller.refused(f"{registry.address}/sealed/one:1", trusting(registry))
        assert (error.code, error.phase) == (ErrorCode.DIGEST_MISMATCH, Phase.VERIFY)


def test_docker_manifests_and_indexes(
    plain_registry: Registry, puller: Puller, layout: Path
) -> None:
    digest = registries.push(layout, plain_registry, "form/docker:1", options=["--format", "v2s2"])
    manifest = json.loads(plain_registry.blob(digest).read_bytes())
    assert "docker" in manifest["mediaType"]
    reference = f"{plain_registry.address}/form/docker"
    image = puller(f"{reference}:1", trusting(plain_registry))
    assert image.digest == digest
    assert puller(f"{reference}@{digest}", trusting(plain_registry)).layers == image.layers
    pinned = trusting(plain_registry, allowed=(f"{reference}@{digest}",))
    assert puller(f"{reference}:1", pinned).digest == digest
    other = trusting(plain_registry, allowed=(f"{reference}@sha256:{'0' * 64}",))
    with pytest.raises(AgentError) as caught:
        puller(f"{reference}:1", other)
    assert caught.value.code is ErrorCode.IMAGE_NOT_ALLOWED


def test_layers_are_shared_by_images(
    plain_registry: Registry, puller: Puller, layout: Path, tmp_path: Path
) -> None:
    registries.push(layout, plain_registry, "shared/one:1")
    other = tmp_path / "other"
    layers.write_layout(other, [TARS[0], layers.tar([layers.file("other")])])
    registries.push(other, plain_registry, "shared/two:1")
    one = puller(f"{plain_registry.address}/shared/one:1", trusting(plain_registry))
    puller.told.clear()
    two = puller(f"{plain_registry.address}/shared/two:1", trusting(plain_registry))
    assert one.layers[0] == two.layers[0]
    assert {text.partition(" at ")[0] for _, text, _, total in puller.told if total} == {
        "layer 2 of 2"
    }


def test_two_pulls_at_once_unpack_once(
    plain_registry: Registry, puller: Puller, layout: Path
) -> None:
    registries.push(layout, plain_registry, "shared/three:1")
    pulled: list[Image] = []
    threads = [
        threading.Thread(
            target=lambda: pulled.append(
                puller(f"{plain_registry.address}/shared/three:1", trusting(plain_registry))
            )
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(pulled) == 3
    assert len({image.layers for image in pulled}) == 1
    assert [
        text.partition(" at ")[0] for _, text, done, total in puller.told if total and done == total
    ] == [
        "layer 1 of 3",
        "layer 2 of 3",
        "layer 3 of 3",
    ]


def test_tls_with_a_private_ca(tls_registry: Registry, puller: Puller, layout: Path) -> None:
    registries.push(layout, tls_registry, "tls/one:1")
    assert tls_registry.certificate is not None
    policy = ImagePolicy(ca_certificates=tls_registry.certificate.authority)
    image = puller(f"{tls_registry.address}/tls/one:1", policy)
    assert (Path(image.layers[0]) / "big").read_bytes() == NOISE


def test_tls_ends_in_the_guest_whatever_carries_it(
    tls_registry: Registry, puller: Puller, layout: Path
) -> None:
    """The connection is one end of a unix socket pair, as the shim's tunnel is in the guest."""
    registries.push(layout, tls_registry, "tls/tunnel:1")
    assert tls_registry.certificate is not None
    with tunnel() as tunneled:
        puller.dial = tunneled.dial
        puller(
            f"{tls_registry.address}/tls/tunnel:1",
            ImagePolicy(ca_certificates=tls_registry.certificate.authority),
        )
    seen = b"".join(tunneled.carried)
    assert len(seen) > len(NOISE)
    assert b"manifests" not in seen
    assert tunneled.connections == 1


def test_large_layers_come_over_several_connections(
    tls_registry: Registry, puller: Puller, tmp_path: Path
) -> None:
    layout = tmp_path / "large"
    tars = [layers.tar([layers.file(str(n), NOISE)]) for n in range(4)]
    tars.append(layers.tar([layers.link("link", "0")]))
    layers.write_layout(layout, tars)
    registries.push(layout, tls_registry, "tls/large:1")
    assert tls_registry.certificate is not None
    with tunnel() as tunneled:
        puller.dial = tunneled.dial
        policy = ImagePolicy(ca_certificates=tls_registry.certificate.authority)
        image = puller(f"{tls_registry.address}/tls/large:1", policy)
    assert tunneled.connections == 3
    assert [(Path(image.layers[n]) / str(n)).read_bytes() == NOISE for n in range(4)] == [True] * 4
    assert (Path(image.layers[4]) / "link").read_bytes() == NOISE


def test_tls_with_another_ca(tls_registry: Registry, puller: Puller, tmp_path: Path) -> None:
    other = registries.certificate(tmp_path / "other")
    reference = f"{tls_registry.address}/tls/one:1"
    for certificates in ("", other.authority, "no certificate"):
        error = puller.refused(reference, ImagePolicy(ca_certificates=certificates))
        assert (error.code, error.phase) == (ErrorCode.REGISTRY_UNTRUSTED, Phase.PULL)


def test_tls_for_another_name(puller: Puller, tmp_path: Path) -> None:
    certificate = registries.certificate(tmp_path / "certificates", "127.0.0.2")
    with registries.serve(tmp_path / "registry", certificate=certificate) as registry:
        policy = ImagePolicy(ca_certificates=certificate.authority)
        error = puller.refused(f"{registry.address}/tls/one:1", policy)
    assert error.code is ErrorCode.REGISTRY_UNTRUSTED


def test_plain_http_must_be_named(plain_registry: Registry, puller: Puller) -> None:
    error = puller.refused(f"{plain_registry.address}/a:1", ImagePolicy())
    assert error.code is ErrorCode.REGISTRY_UNTRUSTED
    assert plain_registry.address in str(error)


def test_tls_where_plain_http_was_named(tls_registry: Registry, puller: Puller) -> None:
    error = puller.refused(f"{tls_registry.address}/a:1", ImagePolicy((tls_registry.address,)))
    assert error.code is ErrorCode.REGISTRY_PROTOCOL


def test_unknown_images(plain_registry: Registry, puller: Puller, layout: Path) -> None:
    registries.push(layout, plain_registry, "known/image:1")
    unknown = ["known/image:2", "unknown/image:1", f"known/image@sha256:{'0' * 64}"]
    for name in unknown:
        error = puller.refused(f"{plain_registry.address}/{name}", trusting(plain_registry))
        assert (error.code, error.phase) == (ErrorCode.IMAGE_NOT_FOUND, Phase.PULL)
        assert plain_registry.address in str(error)


def test_nobody_listens(puller: Puller) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and kept, so that nobody else takes it
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        error = puller.refused(f"{address}/a:1", ImagePolicy((address,)))
    assert error.code is ErrorCode.REGISTRY_UNREACHABLE
    assert address in str(error)


MEASURED_PULL = """
import re, sys
from fixtures.pulling import Puller
from pathlib import Path
from sealrun_agent.image.pull import ImagePolicy

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

registry, small, large, key, store = sys.argv[1:]
puller = Puller(Path(store), [Path(key).read_bytes()])
policy = ImagePolicy((registry,), insecure_unpinned_keys=True)
puller(small, policy)
before = peak()
puller(large, policy)
print(peak() - before)
"""


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_memory_does_not_grow_with_the_layer(
    plain_registry: Registry, puller: Puller, image_key: KeyPair, tmp_path: Path, compression: str
) -> None:
    """100 MiB of layer cost no more than a small one does, decryption included."""
    references = []
    for name, size in (("small", 8), ("large", 108)):
        layout = tmp_path / name
        tar = layers.tar([layers.file(str(n), random.randbytes(1 << 20)) for n in range(size)])
        layers.write_layout(layout, [tar], compression=compression)
        repository = f"memory/{compression}-{name}:1"
        registries.push(layout, plain_registry, repository, encrypt_for=[image_key])
        references.append(f"{plain_registry.address}/{repository}")
    arguments = [plain_registry.address, *references, str(image_key.private), str(puller.root)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    grown = subprocess.run(
        [sys.executable, "-c", MEASURED_PULL, *arguments],
        capture_output=True, check=True, text=True, env={**os.environ, "PYTHONPATH": path},
    ).stdout  # fmt: skip
    assert int(grown) < 12 * 1024  # KiB: more of what waits between the threads is full


def test_no_space(plain_registry: Registry, layout: Path, tmp_path: Path) -> None:
    registries.push(layout, plain_registry, "space/one:1")
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)], check=True)
    try:
        reference = f"{plain_registry.address}/space/one:1"
        error = Puller(directory).refused(reference, trusting(plain_registry))
        assert error.code is ErrorCode.NO_SPACE
        assert "of 2 MiB" in str(error)
        assert os.statvfs(directory).f_bfree > 450  # of 512 pages
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_what_cannot_fit_is_refused_before_it_is_fetched(
    plain_registry: Registry, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    tars = [layers.tar([layers.file(name, os.urandom(1 << 20))]) for name in "abc"]
    layers.write_layout(layout, tars)
    registries.push(layout, plain_registry, "space/three:1")
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)], check=True)
    try:
        before = plain_registry.requests("/v2/space/three/blobs")
        puller = Puller(directory)
        reference = f"{plain_registry.address}/space/three:1"
        error = puller.refused(reference, trusting(plain_registry))
        assert error.code is ErrorCode.NO_SPACE
        assert f"image {reference} needs more than 4 MiB, and 2 MiB of 2 MiB" in str(error)
        assert plain_registry.requests("/v2/space/three/blobs") == before + 1, "its configuration"
        assert puller.resolved == []
    finally:
        subprocess.run(["umount", str(directory)], check=True)
