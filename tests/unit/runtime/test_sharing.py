"""What of the host a container gets: the rules, and the mounts that are opened by them."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from fixtures import containers
from sealrun_protocol.init_data import Host
from sealrun_runtime import namespaces, sharing
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.errors import InvalidRequest
from sealrun_runtime.oci_config import IdMapping, Mount


def container(*mounts: Mount, bundle: Path = Path("/b"), **members: Any) -> ContainerSpec:
    given = {"bundle": str(bundle), "rootfs": str(bundle / "rootfs"), "mounts": mounts}
    return containers.spec(**given | members)


def bind(source: object, destination: str = "/data", *options: str) -> Mount:
    options = ("rbind", *options)
    return Mount(destination=destination, source=str(source), type="bind", options=options)


def test_what_is_shared_what_is_copied_and_what_is_neither() -> None:
    given = container(
        Mount(destination="/proc", type="proc", source="proc"),
        bind("/run/c/hosts", "/etc/hosts"),
        bind("/srv", "/srv"),
        Mount(destination="/etc/hostname", source="/h", options=("bind",)),
        Mount(destination="/none", type="none", source="/x", options=("rbind", "ro")),
        Mount(destination="/etc/resolv.conf", type="tmpfs", source="tmpfs"),
        bind("/run/shm", "/dev/shm"),
        bind("/sys", "/sys"),
        bind("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd"),
        bind("/dev/null", "/etc/motd"),
        bind("/b/secrets/key", "/run/secrets/key"),
        bind("/b/secrets/../etc", "/etc/x"),
        bind("secrets/other", "/other"),
        bind("/run/c/.containerenv", "/run/.containerenv"),
    )
    plan = sharing.plan(given, "registry.test/app:1")
    assert plan == sharing.Plan(root=False, shared=(2, 4, 11), copied=(1, 3, 10, 12, 13))
    assert plan.names == ("2", "4", "11")
    assert sharing.plan(given, "").names == ("root", "2", "4", "11")
    assert sharing.source_of(given, 12) == "/b/secrets/other"


@pytest.mark.parametrize("root", ["/var/lib/containers/storage", "/run/containers/storage"])
def test_an_engine_s_users_are_not_put_over_those_of_the_image(root: str) -> None:
    """`--read-only --user 1000`: Podman and CRI-O write /etc/passwd anew, from their copy of the image."""
    bundle = Path("/var/lib/containers/storage/overlay-containers/c1/userdata")
    theirs = f"{root}/overlay-containers/c1/userdata"
    given = container(
        bind(f"{theirs}/passwd", "/etc/passwd"),
        bind(f"{theirs}/group", "/etc/group"),
        bind("/home/me/passwd", "/etc/passwd"),
        bind(f"{theirs}/group", "/etc/passwd"),
        bind(f"{root}/overlay-containers/c2/userdata/group", "/etc/group"),
        bundle=bundle,
    )
    assert sharing.plan(given, "registry.test/app:1").shared == (2, 3, 4)
    assert sharing.plan(given, "").shared == (0, 1, 2, 3, 4)
    plain = container(bind("/b/passwd", "/etc/passwd"))
    assert sharing.plan(plain, "registry.test/app:1").shared == (0,), "a bundle of one's own"


def test_an_overlay_is_refused_before_a_vm_boots() -> None:
    """`--volume DIRECTORY:/data:O`, `--mount type=image`."""
    given = container(Mount(destination="/data", type="overlay", source="overlay"))
    with pytest.raises(InvalidRequest, match=r"\$\.mounts\[0\]: an overlay .* at /data") as caught:
        sharing.check(given, sharing.plan(given, "registry.test/app:1"), None)
    assert "--volume without O" in caught.value.remedy


def test_what_the_tenant_does_not_allow_is_refused_at_once() -> None:
    given = container(bind("/etc/hosts", "/etc/hosts"), bind("/srv", "/data/sub"))
    plan = sharing.plan(given, "image")
    sharing.check(given, plan, None)
    sharing.check(given, plan, Host(insecure_shared_directories=("/data",)))
    text = r"\$\.mounts\[1\]: the init-data does not allow a directory of the host at /data/sub"
    for host in (Host(), Host(insecure_shared_directories=("/data/sub/more", "/etc"))):
        with pytest.raises(InvalidRequest, match=text):
            sharing.check(given, plan, host)
    many = container(*[bind("/srv")] * 129)
    with pytest.raises(InvalidRequest, match="more than 128 are directories of the host"):
        sharing.check(many, sharing.plan(many, "image"), None)


@pytest.mark.root
def test_read_only_and_recursion_are_of_the_opened_mount(tmp_path: Path) -> None:
    """As crun has them: `ro` is the mount alone, `rro` what is below it too, a plain bind leaves out
    what is mounted below."""
    volume = tmp_path / "volume"
    (volume / "below").mkdir(parents=True)
    namespaces.mount("tmpfs", str(volume / "below"), "tmpfs", 0)
    (volume / "below/file").touch()
    try:
        given = container(
            bind(volume, "/rw"),
            bind(volume, "ro", "rw", "ro"),
            bind(volume, "/rro", "rro"),
            Mount(destination="/plain", source=str(volume), options=("bind",)),
            bundle=tmp_path,
        )
        with sharing.open_sources(given, sharing.plan(given, "image")) as sources:
            assert [writable(tree) for tree in sources.for_guest] == [True, False, False, True]
            below = [below_is(tree) for tree in sources.for_guest]
            assert below == ["writable", "writable", "read-only", "empty"]
            destinations = [tree.destination for tree in sources.for_stand_in]
            assert destinations == ["/rw", "/ro", "/rro", "/plain"]
            assert not writable(sources.for_stand_in[1].descriptor)
    finally:
        namespaces.detach(str(volume / "below"))
    assert (volume / "below").stat().st_dev == volume.stat().st_dev
    for tree in sources.for_guest:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(tree)


@pytest.mark.root
@pytest.mark.parametrize(("option", "seen"), [("rprivate", False), ("rslave", True)])
def test_what_the_host_mounts_later_is_seen_where_that_is_asked_for(
    tmp_path: Path, option: str, seen: bool
) -> None:
    namespaces.mount("tmpfs", str(tmp_path), "tmpfs", 0)
    try:
        (tmp_path / "below").mkdir()
        shared = 0x100000
        namespaces.mount("none", str(tmp_path), "", shared)
        place = tmp_path.parent / f"place-{option}"
        given = container(bind(tmp_path, "/data", option))
        with sharing.open_sources(given, sharing.plan(given, "image")) as sources:
            # Propagation needs a mount that is mounted somewhere.
            place.mkdir()
            namespaces.attach_tree(sources.for_guest[0], str(place))
            namespaces.mount("tmpfs", str(tmp_path / "below"), "tmpfs", 0)
            (tmp_path / "below/file").touch()
            assert (place / "below/file").exists() is seen
            namespaces.detach(str(place))
    finally:
        namespaces.detach(str(tmp_path))


@pytest.mark.root
def test_a_root_is_as_read_only_as_config_json_says(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    for readonly in (True, False):
        given = container(bundle=tmp_path, rootfs_readonly=readonly)
        with sharing.open_sources(given, sharing.plan(given, "")) as sources:
            assert writable(sources.for_guest[0]) is not readonly
            assert sources.for_stand_in == ()


@pytest.mark.root
def test_symbolic_links_and_devices_are_dead_on_an_opened_mount(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mknod(tmp_path / "null", 0o20666, os.makedev(1, 3))
    given = container(bind(tmp_path))
    with sharing.open_sources(given, sharing.plan(given, "image")) as sources:
        tree = sources.for_guest[0]
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            os.open("link", os.O_RDONLY, dir_fd=tree)
        assert os.readlink("link", dir_fd=tree) == "/etc/passwd"
        with pytest.raises(PermissionError):
            os.open("null", os.O_RDONLY, dir_fd=tree)


@pytest.mark.root
def test_what_cannot_be_shared(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    os.mkfifo(tmp_path / "fifo")
    causes = {
        "socket": "a socket of the host is of no use in a VM",
        "fifo": "a fifo of the host is of no use in a VM",
        "none": "it does not exist",
    }
    before = len(os.listdir("/proc/self/fd"))
    for name, cause in causes.items():
        given = container(bind(tmp_path), bind(tmp_path / name))
        text = rf"\$\.mounts\[1\]: cannot share {tmp_path / name}: {cause}"
        with (
            pytest.raises(InvalidRequest, match=text),
            sharing.open_sources(given, sharing.plan(given, "image")),
        ):
            pass
    assert len(os.listdir("/proc/self/fd")) <= before


def writable(tree: int) -> bool:
    try:
        os.mkdir("new", dir_fd=tree)
    except OSError as error:
        assert error.strerror == "Read-only file system"
        return False
    os.rmdir("new", dir_fd=tree)
    return True


def below_is(tree: int) -> str:
    try:
        os.utime("below/file", dir_fd=tree)
    except FileNotFoundError:
        return "empty"
    except OSError:
        return "read-only"
    return "writable"


IDS = (
    IdMapping(container_id=0, host_id=100000, size=1000),
    IdMapping(container_id=1000, host_id=5000, size=10),
)


@pytest.mark.root
def test_a_user_namespace_s_files_are_those_of_its_users_on_the_host(tmp_path: Path) -> None:
    """Whoever is root in the guest: what the host gives it is not root's."""
    volume = tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, 100000, 100000)
    for name, owner in (("its", 100000), ("root-s", 0), ("user-s", 5003)):
        (volume / name).write_text(name)
        (volume / name).chmod(0o600)
        os.chown(volume / name, owner, owner)
    given = container(bind(volume), uid_mappings=IDS, gid_mappings=IDS[:1])
    with sharing.open_sources(given, sharing.plan(given, "image")) as sources:
        for tree in (sources.for_guest[0], sources.for_stand_in[0].descriptor):
            seen = Path(f"/proc/self/fd/{tree}")
            owners = {
                path.name: (path.stat().st_uid, path.stat().st_gid) for path in seen.iterdir()
            }
            nobody = 65534
            assert owners == {
                "its": (0, 0),
                "root-s": (nobody, nobody),
                "user-s": (1003, nobody),
            }
            assert (seen / "its").read_text() == "its"
            with pytest.raises(PermissionError):  # though we are root
                (seen / "root-s").write_text("x")
            (seen / "new").touch()
            assert (volume / "new").stat().st_uid == 100000
            (volume / "new").unlink()


@pytest.mark.root
def test_a_file_system_that_cannot_be_mounted_with_other_owners() -> None:
    given = container(bind("/proc", "/data"), uid_mappings=IDS, gid_mappings=IDS)
    with pytest.raises(
        InvalidRequest, match=r"\$.mounts\[0\]: cannot share /proc with a container"
    ):
        with sharing.open_sources(given, sharing.plan(given, "image")):
            pass
    same = (IdMapping(container_id=0, host_id=0, size=9),)
    given = container(bind("/proc", "/data"), uid_mappings=same, gid_mappings=same)
    with sharing.open_sources(given, sharing.plan(given, "image")):
        pass
