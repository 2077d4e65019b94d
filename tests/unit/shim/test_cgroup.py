"""Where a sandbox's cgroup is, and that nothing of it stays: on plain directories here, on the real
hierarchies in tests/component/test_shim_cgroup.py."""

from pathlib import Path

import pytest
from sealrun_runtime import store
from sealrun_runtime.shim.cgroup import Cgroup, Hierarchy, directory_of, hierarchies

V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,clone_children,cpuset
34 31 0:32 / /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/sys\\040temd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
"""
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def test_v1_and_hybrid_use_the_v1_hierarchies_that_can_be_written() -> None:
    expected = [
        Hierarchy("/sys/fs/cgroup/cpu,cpuacct", ("cpu", "cpuacct")),
        Hierarchy("/sys/fs/cgroup/cpuset", ("cpuset",)),
        Hierarchy("/sys/fs/cgroup/sys temd", ("name=systemd",)),
    ]
    assert hierarchies(V1) == expected
    assert hierarchies(HYBRID) == expected


def test_pure_v2_is_one_hierarchy() -> None:
    assert hierarchies(V2) == [Hierarchy("/sys/fs/cgroup", ())]
    assert hierarchies("") == []


def test_a_hierarchy_that_is_mounted_twice_counts_once() -> None:
    again = "50 31 0:31 / /other/cpuset rw - cgroup cgroup rw,cpuset\n"
    assert hierarchies(V1 + again) == hierarchies(V1)


@pytest.mark.parametrize(
    ("path", "directory"),
    [
        ("/libpod_parent/libpod-1", "/libpod_parent/libpod-1"),
        ("a//b/", "/a/b"),
        ("/default/c1", "/default/c1"),
        ("machine.slice:libpod:1f", "/machine.slice/libpod-1f.scope"),
        ("system.slice::c1", "/system.slice/c1.scope"),
        (":crio:c1", "/system.slice/crio-c1.scope"),
        ("-.slice:crio:c1", "/crio-c1.scope"),
        (
            "kubepods-besteffort-pod1.slice:crio:c1",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/crio-c1.scope",
        ),
    ],
)
def test_the_path_in_both_forms(path: str, directory: str) -> None:
    assert directory_of(path) == directory


@pytest.mark.parametrize("path", ["/", "", "/a/../../b", "..", "/a/./b", "a\0b", "a--b.slice:x:y"])
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
