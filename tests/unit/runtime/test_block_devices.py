"""Which block devices of the host a container gets, and whether it may write to them."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fixtures import containers
from sealrun_protocol.init_data import Host
from sealrun_runtime import block_devices, namespaces
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.errors import InvalidRequest
from sealrun_runtime.oci_config import IdMapping, Linux

ALL = {"allow": True, "access": "rwm"}
NONE = {"allow": False, "access": "rwm"}


def device(path: str = "/dev/xvda", major: int = 8, minor: int = 16) -> dict[str, Any]:
    return {"path": path, "type": "b", "major": major, "minor": minor}


def container(
    *devices: dict[str, Any], rules: tuple[dict[str, Any], ...] = (), **members: Any
) -> ContainerSpec:
    document = {"devices": devices, "resources": {"devices": rules}}
    linux = msgspec.convert(document, Linux)
    given: dict[str, Any] = {
        "block_devices": block_devices.named(linux),
        "privileged": block_devices.allows_everything(linux),
    }
    return containers.spec(**given | members)


@pytest.fixture
def system(tmp_path: Path) -> str:
    """A host with sdb (8:16), sdc (8:32), which is read-only, and an empty drive (11:0)."""
    for number, name, readonly, sectors in (
        ("8:16", "sdb", 0, 8),
        ("8:32", "sdc", 1, 8),
        ("11:0", "sr0", 0, 0),
    ):
        (tmp_path / number).mkdir()
        (tmp_path / number / "uevent").write_text(f"MAJOR=1\nDEVNAME={name}\nDEVTYPE=disk\n")
        (tmp_path / number / "ro").write_text(f"{readonly}\n")
        (tmp_path / number / "size").write_text(f"{sectors}\n")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("rules", "readonly"),
    [
        ((), False),
        ((ALL,), False),
        ((NONE,), True),
        ((NONE, {**ALL, "type": "b", "major": 8, "minor": 16}), False),
        ((NONE, {**ALL, "type": "b", "major": 8, "minor": -1}), False),
        ((NONE, {**ALL, "type": "c", "major": 8, "minor": 16}), True),
        ((NONE, {**ALL, "type": "b", "major": 8, "minor": 17}), True),
        ((NONE, {"allow": True, "type": "b", "major": 8, "minor": 16, "access": "rm"}), True),
        ((ALL, {"allow": False, "type": "b", "major": 8, "access": "w"}), True),
        (({"allow": True, "type": "b", "major": 8, "access": "w"}, NONE), True),
    ],
)
def test_the_last_rule_that_fits_says_who_writes(
    rules: tuple[dict[str, Any], ...], readonly: bool
) -> None:
    (found,) = container(device(), rules=rules).block_devices
    assert found.readonly is readonly


def test_what_the_device_says_counts_too(system: str) -> None:
    given = container(device(), device("/dev/xvdb", minor=32))
    found = block_devices.found(given, system)
    assert [(one.path, one.serial, one.readonly) for one in found] == [
        ("/dev/xvda", "block-8-16", False),
        ("/dev/xvdb", "block-8-32", True),
    ]


def persistent(system: str, number: str, sectors: int, dax: str, partition: str = "") -> None:
    """A device of the host's, as Linux shows one."""
    place = Path(system, number)
    if partition:
        (place.parent / f"{number}-of" / "queue").mkdir(parents=True)
        (place.parent / f"{number}-of" / partition).mkdir()
        place.symlink_to(f"{number}-of/{partition}")
        (place / "partition").write_text("1\n")
        (place / "../queue/dax").write_text(dax)
    else:
        (place / "queue").mkdir(parents=True)
        (place / "queue/dax").write_text(dax)
    for name, text in (("uevent", "DEVNAME=pmem0\n"), ("ro", "0\n"), ("size", f"{sectors}\n")):
        (place / name).write_text(text)


@pytest.mark.parametrize(
    ("dax", "partition", "expected"),
    [
        ("1\n", "", 4096 * 512),
        ("1\n", "pmem0p1", 4096 * 512),
        ("0\n", "", 0),  # sector mode, or any other device
        ("0\n", "sda1", 0),
    ],
)
def test_persistent_memory_is_what_the_kernel_says(
    system: str, dax: str, partition: str, expected: int
) -> None:
    persistent(system, "259:0", 4096, dax, partition)
    (found,) = block_devices.found(container(device(major=259, minor=0)), system)
    assert found.pmem_bytes == expected


def test_a_kernel_that_does_not_say_has_none(system: str) -> None:
    (found,) = block_devices.found(container(device()), system)
    assert found.pmem_bytes == 0


def test_how_much_of_it_the_host_has(system: str) -> None:
    assert block_devices.pmem_bytes("/nowhere") == 0
    assert block_devices.pmem_bytes(system) == 0
    persistent(system, "259:0", 4096, "1\n")
    persistent(system, "259:1", 8192, "1\n")
    persistent(system, "259:2", 8192, "0\n")
    assert block_devices.pmem_bytes(system) == 12288 * 512


def test_serials_fit() -> None:
    (largest,) = container(device(major=4095, minor=(1 << 20) - 1)).block_devices
    assert len(largest.serial) <= 20  # VIRTIO_BLK_ID_BYTES


def test_only_those_of_type_b() -> None:
    null = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
    assert [one.index for one in container(null, device()).block_devices] == [1]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            container(device(minor=17)),
            "cannot find the block device 8:17 of this host: it does not",
        ),
        (container(device(major=11, minor=0)), r"the block device 11:0 \(sr0\) holds no medium"),
        (
            container(device(), uid_mappings=(IdMapping(container_id=0, host_id=1, size=2),)),
            "a container with a user namespace cannot have a block device",
        ),
    ],
)
def test_refused(system: str, given: ContainerSpec, text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^\$\.linux\.devices\[0\]: " + text):
        block_devices.found(given, system)


def test_of_a_privileged_container_s_only_what_was_asked_for_by_name(system: str) -> None:
    """Engines list the host's under its own names, some that are gone, or hold nothing."""
    host_s = [device("/dev/sdb"), device("/dev/sdc", minor=32), device("/dev/sr0", 11, 0)]
    gone = device("/dev/sdx", 65, 0)
    given = container(*host_s, gone, device("/dev/xvda", minor=32), rules=(ALL,))
    assert [one.index for one in block_devices.found(given, system)] == [4]


def test_the_tenant_decides() -> None:
    devices = container(device("/dev/xvda"), device("/data/disk")).block_devices
    block_devices.check(devices, None)
    block_devices.check(devices, Host(insecure_block_devices=("/dev", "/data/disk")))
    with pytest.raises(InvalidRequest, match=r"devices\[1\]: .* at /data/disk") as caught:
        block_devices.check(devices, Host(insecure_block_devices=("/dev", "/data/disks")))
    assert "insecure_block_devices" in caught.value.remedy


def test_there_are_not_too_many() -> None:
    devices = container(*(device(f"/dev/x{n}", minor=n) for n in range(9))).block_devices
    with pytest.raises(InvalidRequest, match="more than 8 are block devices"):
        block_devices.check(devices, None)
    block_devices.check(devices[:8], None)


@pytest.mark.root
def test_nodes_lie_where_no_name_leads_to() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    place = namespaces.make_tmpfs()
    try:
        os.mknod("node", 0o600 | 0o060000, os.makedev(7, 0), dir_fd=place)
        about = os.stat(f"/proc/self/fd/{place}/node")
        assert about.st_rdev == os.makedev(7, 0)
        assert os.stat(f"/proc/self/fd/{place}").st_mode & 0o777 == 0o700
        assert Path("/proc/self/mountinfo").read_text() == before
        assert not os.get_inheritable(place)
    finally:
        os.close(place)
