"""An image of real Debian packages: every inode of its tree is what umoci and Podman make of it."""

import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fixtures import inodes, layers
from fixtures import registry as registries
from fixtures.pulling import Puller
from fixtures.registry import Registry
from sealrun_agent.image.pull import ImagePolicy

pytestmark = [pytest.mark.registry, pytest.mark.root, pytest.mark.podman]

# Setuid programs, hard links, links to directories, owners that are not root, thousands of small files.
PACKAGES = (("base-files", "passwd", "perl-base"), ("mount", "coreutils", "tzdata", "adduser"))
SECONDS = 120


def packed(packages: Sequence[str]) -> bytes:
    """What GNU tar writes of the packages' files, with all directories above them."""
    listed = subprocess.run(["dpkg", "-L", *packages], check=True, capture_output=True, text=True)
    names: dict[str, None] = {}
    for line in listed.stdout.splitlines():
        parent, _, last = line.strip().rpartition("/")
        name = os.path.join(os.path.realpath(parent or "/"), last).strip("/")
        if name and name != "." and line.startswith("/") and os.path.lexists(f"/{name}"):
            above = name.split("/")[:-1]
            names |= dict.fromkeys("/".join(above[: n + 1]) for n in range(len(above)))
            names[name] = None
    command = ["tar", "-C", "/", "--format=posix", "--xattrs", "--no-recursion", "--null"]
    return subprocess.run(
        [*command, "--files-from=-", "-cf", "-"],
        input="\0".join(names).encode(), check=True, capture_output=True,
    ).stdout  # fmt: skip


NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0).decode("latin-1")
SPARSE = {
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.name": "usr/bin/sparse",
    "GNU.sparse.realsize": "1000000",
}
CHANGES = layers.tar(
    [
        layers.directory("usr"),
        layers.directory("usr/bin"),
        layers.file("usr/bin/.wh.env"),
        layers.file("usr/bin/true", b"another", mode=0o4711, uid=7),
        layers.file("usr/bin/capable", b"2", mode=0o755,
                    pax_headers={"SCHILY.xattr.security.capability": NET_RAW}),
        layers.file("usr/bin/sparse", b"2\n0\n5\n655360\n5\n".ljust(512, b"\0") + b"x" * 10,
                    pax_headers=SPARSE),
        layers.link("usr/bin/true-too", "usr/bin/true", mode=0o4711, uid=7),
        layers.directory("usr/share"),
        layers.directory("usr/share/zoneinfo", mode=0o750),
        layers.file("usr/share/zoneinfo/.wh..wh..opq"),
        layers.file("usr/share/zoneinfo/only", b"1"),
        layers.directory("etc"),
        layers.file("etc/.wh.default"),
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("real") / "layout"
    layers.write_layout(directory, [*(packed(names) for names in PACKAGES), CHANGES])
    return directory


@pytest.fixture
def root(tmp_path: Path, plain_registry: Registry, layout: Path) -> Iterator[Path]:
    """Our tree, mounted."""
    registries.push(layout, plain_registry, "real/tree:1")
    store = tmp_path / "store"
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(store)], check=True)
    puller = Puller(store)
    policy = ImagePolicy((plain_registry.address,))
    image = puller(f"{plain_registry.address}/real/tree:1", policy)
    yield Path(puller.store.mount(image.layers, "one"))
    puller.store.unmount("one")
    subprocess.run(["umount", "-R", str(store)], check=True)


def test_the_tree_is_that_of_umoci(root: Path, layout: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    registries.run(["umoci", "unpack", "--image", f"{layout}:latest", str(bundle)])
    inodes.assert_same(root, bundle / "rootfs")
    assert len(inodes.tree(root)) > 500
    assert not (root / "usr/bin/env").exists()
    assert os.listdir(root / "usr/share/zoneinfo") == ["only"]
    sparse = (root / "usr/bin/sparse").stat()
    assert (sparse.st_size, sparse.st_blocks < 100) == (1_000_000, True)
    assert os.getxattr(root / "usr/bin/capable", "security.capability")
    assert (root / "usr/bin/true-too").stat().st_nlink == 2


def test_the_tree_is_that_of_podman(root: Path, plain_registry: Registry) -> None:
    reference = f"{plain_registry.address}/real/tree:1"
    with tempfile.TemporaryDirectory() as name:  # Podman wants a short path
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", name], check=True)
        podman = ["timeout", "-k5", str(SECONDS), "podman", "--storage-driver", "overlay"]
        podman += ["--root", f"{name}/root", "--runroot", f"{name}/run", "--tmpdir", f"{name}/tmp"]
        try:
            registries.run([*podman, "pull", "-q", "--tls-verify=false", reference])
            mounted = registries.run([*podman, "image", "mount", reference]).strip()
            inodes.assert_same(root, Path(mounted))
            registries.run([*podman, "image", "umount", "--all"])
        finally:
            subprocess.run(["umount", "-R", "-l", name], check=True)
