"""Where a sandbox's cgroup is, and that nothing of it stays: on plain directories here, on the real
hierarchies in tests/component/test_shim_cgroup.py."""

from pathlib import Path

import pytest
from sealrun_runtime import mount_table, store
from sealrun_runtime.host_limits import UNLIMITED, VmLimits
from sealrun_runtime.shim.cgroup import Cgroup, Hierarchy, directory_of, files, hierarchies

V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,clone_children,cpuset
34 31 0:32 / /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/sys\\040temd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
"""
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def used(mountinfo: str) -> list[Hierarchy]:
    return hierarchies(mount_table.parse(mountinfo))


def test_v1_and_hybrid_use_the_v1_hierarchies_that_can_be_written() -> None:
    expected = [
        Hierarchy("/sys/fs/cgroup/cpu,cpuacct", ("cpu", "cpuacct")),
        Hierarchy("/sys/fs/cgroup/cpuset", ("cpuset",)),
        Hierarchy("/sys/fs/cgroup/sys temd", ("name=systemd",)),
    ]
    assert used(V1) == expected
    assert used(HYBRID) == expected


def test_pure_v2_is_one_hierarchy() -> None:
    assert used(V2) == [Hierarchy("/sys/fs/cgroup", ())]
    assert used("") == []


def test_a_mount_with_an_odd_name_is_no_matter() -> None:
    """The kernel writes these characters as they are, and they end a line for Python."""
    other = "49 23 0:48 / /mnt/a\u2028b\v\f\r\x85\udcffc rw - tmpfs tmpfs rw\n"
    assert used(other + V1) == used(V1)


def test_a_hierarchy_that_is_mounted_twice_counts_once() -> None:
    again = "50 31 0:31 / /other/cpuset rw - cgroup cgroup rw,cpuset\n"
    assert used(V1 + again) == used(V1)


@pytest.mark.parametrize(
    ("path", "directory"),
    [
        ("/libpod_parent/libpod-1", "/libpod_parent/libpod-1"),
        ("a//b/", "/a/b"),
        ("/default/c1", "/default/c1"),
    ],
)
def test_the_path_below_a_hierarchy(path: str, directory: str) -> None:
    assert directory_of(path) == directory


@pytest.mark.parametrize("path", ["/", "", "/a/../../b", "..", "/a/./b", "a\0b"])
def test_paths_that_lead_elsewhere(path: str) -> None:
    with pytest.raises(ValueError, match="cannot use"):
        directory_of(path)


@pytest.fixture
def directory(tmp_path: Path) -> store.Directory:
    return store.make_container(str(tmp_path / "root"), "c1")


def test_what_was_made_is_noted_and_removed(tmp_path: Path, directory: store.Directory) -> None:
    mount = tmp_path / "memory"
    mount.mkdir()
    cgroup = Cgroup(directory, [Hierarchy(str(mount), ("memory",))], "/parent/leaf")
    cgroup.make()
    noted = directory.read(store.CGROUPS).decode().splitlines()
    assert noted == [f"{mount}/parent", f"{mount}/parent/leaf"]
    assert (mount / "parent/leaf").is_dir()
    assert cgroup.remove() == []
    assert list(mount.iterdir()) == []
    directory.close()


def test_a_parent_that_others_use_stays(tmp_path: Path, directory: store.Directory) -> None:
    mount = tmp_path / "memory"
    (mount / "engine").mkdir(parents=True)
    cgroup = Cgroup(directory, [Hierarchy(str(mount), ("memory",))], "/engine/pod/leaf")
    cgroup.make()
    (mount / "engine/pod/conmon").mkdir()
    assert cgroup.remove() == [f"{mount}/engine/pod"]
    assert (mount / "engine/pod/conmon").is_dir()
    assert not (mount / "engine/pod/leaf").exists()
    directory.close()


def test_directories_that_were_there_are_not_ours(
    tmp_path: Path, directory: store.Directory
) -> None:
    mount = tmp_path / "memory"
    (mount / "engine/leaf").mkdir(parents=True)
    cgroup = Cgroup(directory, [Hierarchy(str(mount), ("memory",))], "/engine/leaf")
    cgroup.make()
    assert directory.read(store.CGROUPS) == b""
    assert cgroup.remove() == []
    assert (mount / "engine/leaf").is_dir()
    directory.close()


def test_a_cpuset_gets_what_its_parent_has(tmp_path: Path, directory: store.Directory) -> None:
    mount = tmp_path / "cpuset"
    mount.mkdir()
    (mount / "cpuset.cpus").write_text("0-1\n")
    (mount / "cpuset.mems").write_text("0\n")
    leaf = mount / "leaf"
    leaf.mkdir()
    (leaf / "cpuset.cpus").write_text("\n")
    (leaf / "cpuset.mems").write_text("1\n")  # somebody chose it
    Cgroup(directory, [Hierarchy(str(mount), ("cpuset",))], "/leaf").make()
    assert (leaf / "cpuset.cpus").read_text() == "0-1\n"
    assert (leaf / "cpuset.mems").read_text() == "1\n"
    directory.close()


# --- version 2 -----------------------------------------------------------------------------------

LIMITS = VmLimits(memory=100, cpus=1.5, weight=20, tasks=7, cpuset="0-1", nodes="0")


def test_limits_are_files() -> None:
    assert files(LIMITS) == [
        ("memory.max", "100"),
        ("cpu.max", "150000 100000"),
        ("cpu.weight", "20"),
        ("pids.max", "7"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
    ]
    none = VmLimits(memory=UNLIMITED, cpus=UNLIMITED, tasks=UNLIMITED)
    assert [content for _, content in files(none)] == ["max", "max 100000", "max"]
    assert files(VmLimits()) == []


def leaf_of_v2(tmp_path: Path, *names: str) -> Path:
    leaf = tmp_path / "unified/leaf"
    leaf.mkdir(parents=True)
    for name in names:
        (leaf / name).write_text("max\n")
    return leaf


def test_limits_are_set_where_there_is_a_controller(
    tmp_path: Path, directory: store.Directory, caplog: pytest.LogCaptureFixture
) -> None:
    leaf = leaf_of_v2(tmp_path, "memory.max", "pids.max")
    group = Cgroup(directory, [Hierarchy(str(leaf.parent), ())], "/leaf", limits=LIMITS)
    with caplog.at_level("WARNING"):
        group.make()
    assert (leaf / "memory.max").read_text() == "100"
    assert (leaf / "pids.max").read_text() == "7"
    told = [record.message.split()[5] for record in caplog.records]
    assert told == ["cpu.max", "cpu.weight", "cpuset.cpus", "cpuset.mems"]
    directory.close()


def test_memory_that_is_in_use_is_not_taken_away(
    tmp_path: Path, directory: store.Directory
) -> None:
    leaf = leaf_of_v2(tmp_path, "memory.max", "pids.max")
    (leaf / "memory.current").write_text("101\n")
    group = Cgroup(directory, [Hierarchy(str(leaf.parent), ())], "/leaf")
    group.limit(LIMITS)
    assert (leaf / "memory.max").read_text() == "max\n"
    assert (leaf / "pids.max").read_text() == "7"
    (leaf / "memory.current").write_text("99\n")
    group.limit(LIMITS)
    assert (leaf / "memory.max").read_text() == "100"
    directory.close()


def test_version_1_has_no_limits_of_the_hosts(tmp_path: Path, directory: store.Directory) -> None:
    leaf = leaf_of_v2(tmp_path, "memory.max")
    Cgroup(directory, [Hierarchy(str(leaf.parent), ("memory",))], "/leaf", limits=LIMITS).make()
    assert (leaf / "memory.max").read_text() == "max\n"
    directory.close()


@pytest.mark.parametrize(("own", "enabled"), [(0, True), (1, True), (2, False)])
def test_a_containers_own_group_hands_no_controllers_down(
    tmp_path: Path, directory: store.Directory, own: int, enabled: bool
) -> None:
    """The kernel would let no process of the container into it any more."""
    mount = tmp_path / "unified"
    for path in (mount, mount / "infra"):
        path.mkdir()
        (path / "cgroup.controllers").write_text("memory pids\n")
        (path / "cgroup.subtree_control").write_text("")
    Cgroup(directory, [Hierarchy(str(mount), ())], "/infra/vm", own).make()
    assert (mount / "cgroup.subtree_control").read_text()
    assert bool((mount / "infra/cgroup.subtree_control").read_text()) is enabled
    directory.close()
