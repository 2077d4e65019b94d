"""Block devices of the host in a config.json: where the guest puts them, and what of the host's words it
takes."""

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.guest_config import PLACES, changed, refusal, request
from sealrun_agent import disks
from sealrun_agent.container import spec
from sealrun_agent.container.workload import Tenant, check_disks
from sealrun_agent.errors import StartError
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import Container, Host

SDA = {"path": "/dev/xvda", "type": "b", "major": 8, "minor": 0, "fileMode": 0o640, "gid": 6}
LOOP = {"path": "/data/volume", "type": "b", "major": 7, "minor": 3}
NULL = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
GIVEN = {1: "block-8-0", 2: "block-7-3"}
HERE = {"/dev/xvda": (254, 16), "/data/volume": (254, 32)}


def rule(access: str, major: int | None = None, minor: int | None = None, **more: Any) -> Any:
    numbers = {"major": major, "minor": minor}
    given = {name: number for name, number in numbers.items() if number is not None}
    return {"allow": True, "type": "b", "access": access} | given | more


def placed(rules: list[dict[str, Any]], *devices: dict[str, Any], **given: Any) -> dict[str, Any]:
    document = changed(linux={"devices": list(devices), "resources": {"devices": rules}})
    accepted = spec.accept(request(document, **given))
    made: dict[str, Any] = json.loads(spec.render(spec.with_disks(accepted, HERE), PLACES))
    return dict(made["linux"])


def test_they_have_the_numbers_of_the_vm_s_disks() -> None:
    made = placed([], NULL, SDA, LOOP, disks=GIVEN)
    assert made["devices"] == [
        NULL,
        SDA | {"major": 254, "minor": 16},
        LOOP | {"major": 254, "minor": 32},
    ]


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ([rule("r", 8, 0)], [rule("r", 254, 16)]),
        ([rule("rw", 8)], [rule("rw", 254, 16)]),
        ([rule("rw", -1, 3)], [rule("rw", 254, 32)]),
        ([rule("m"), rule("rw", 9, 9)], [rule("m")]),
        ([rule("rw", 254, 0)], [{"allow": False, "type": "a", "access": "rwm"}]),
        (
            [rule("rwm", 8, 0), rule("w", 8, 0, allow=False)],
            [rule("rwm", 254, 16), rule("w", 254, 16, allow=False)],
        ),
        ([{"allow": False, "access": "rwm"}], [{"allow": False, "access": "rwm"}]),
    ],
)
def test_rules_mean_the_container_s_disks(given: list[Any], made: list[Any]) -> None:
    """Numbers that are the host's never name a device of the VM, whose own disks have some too."""
    assert placed(given, NULL, SDA, LOOP, disks=GIVEN)["resources"]["devices"] == made


@pytest.mark.parametrize(
    ("devices", "given", "text"),
    [
        ([SDA], {}, "linux.devices[0]: /dev/xvda: devices of the host are not in the VM"),
        ([SDA], {1: "block-8-0"}, "linux.devices[1]: there is no such block device"),
        ([SDA], {-1: "block-8-0"}, "linux.devices[-1]: there is no such block device"),
        ([NULL], {0: "block-8-0"}, "linux.devices[0]: there is no such block device"),
        ([SDA], {0: "scratch"}, "linux.devices[0]: 'scratch' names no disk of a container"),
        ([SDA], {0: "pmem-"}, "linux.devices[0]: 'pmem-' names no disk of a container"),
        ([SDA], {0: "pmem-1x"}, "linux.devices[0]: 'pmem-1x' names no disk of a container"),
        ([SDA], {0: "pmem-../vda"}, "linux.devices[0]: 'pmem-../vda' names no disk"),
        ([SDA], {0: "block-8-0\n"}, "linux.devices[0]: 'block-8-0\\n' names no disk"),
        ([SDA | {"path": "/dev/../x"}], {0: "block-8-0"}, "linux.devices[0].path: '/dev/../x'"),
        ([SDA | {"path": "/"}], {0: "block-8-0"}, "linux.devices[0].path: '/' is no place"),
        ([SDA, SDA], {0: "block-8-0"}, "linux.devices[0].path: '/dev/xvda' is no place for one"),
        ([SDA] * 9, dict.fromkeys(range(9), "block-8-0"), "linux.devices: more than 8 are block"),
    ],
)
def test_refused(devices: list[Any], given: dict[int, str], text: str) -> None:
    assert refusal(changed(linux={"devices": devices}), disks=given).startswith(text)


def test_no_node_is_made_on_the_host() -> None:
    document = changed(linux={"devices": [LOOP]})
    text = "linux.devices[0].path: '/data/volume' is not below /dev, and the host shares the root"
    assert refusal(document, disks={0: "block-7-3"}, shared_root=True) == text


def test_none_in_a_user_namespace() -> None:
    ids = [{"containerID": 0, "hostID": 0, "size": 10}]
    own = {"namespaces": [{"type": "user"}], "uidMappings": ids, "gidMappings": ids}
    document = changed(linux=own | {"devices": [SDA]})
    assert "in a user namespace" in refusal(document, disks={0: "block-8-0"})


@pytest.mark.parametrize(
    ("places", "allowed"),
    [((), False), (("/dev/xvdb",), False), (("/dev/xvd",), False), (("/dev",), True)],
)
def test_the_tenant_decides(places: tuple[str, ...], allowed: bool) -> None:
    tenant = Tenant(Container(insecure_any_process=True), Host(insecure_block_devices=places))
    check_disks(["/dev/xvda"], None)
    if allowed:
        check_disks(["/dev/xvda"], tenant)
        return
    with pytest.raises(StartError, match="'/dev/xvda' is a block device of the host") as caught:
        check_disks(["/dev/xvda"], tenant)
    assert caught.value.code is ErrorCode.POLICY_DENIED


def test_a_disk_is_found_by_its_serial_and_awaited(tmp_path: Any) -> None:
    def add(name: str, serial: str, number: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "dev").write_text(f"{number}\n")
        (tmp_path / name / "serial").write_text(serial)

    (tmp_path / "loop0").mkdir()
    add("vda", "scratch\0", "254:0")
    assert disks.find("block-8-0", str(tmp_path)) == ""
    tries = []

    def load() -> None:
        tries.append(1)
        if len(tries) == 3:
            add("vdb", "block-8-0", "254:16")

    assert disks.number("block-8-0", load, directory=str(tmp_path)) == (254, 16)
    with pytest.raises(StartError, match="the VM has no disk 'block-8-1'"):
        disks.number("block-8-1", directory=str(tmp_path), seconds=0)


def test_persistent_memory_is_found_by_where_its_region_begins(tmp_path: Path) -> None:
    """Whatever its namespace holds: what Linux makes of that may begin elsewhere."""
    blocks = tmp_path / "block"
    blocks.mkdir()

    def add(name: str, region: str, number: str) -> None:
        place = tmp_path / f"devices/{region}/namespace0.0/block" / name
        place.mkdir(parents=True)
        (place / "dev").write_text(f"{number}\n")
        (place / "device").symlink_to("../..")
        (place / "../../resource").write_text("0x1\n")
        (blocks / name).symlink_to(place)

    add("pmem0", "region0", "259:0")
    add("pmem1", "region1", "259:1")
    (tmp_path / "devices/region0/resource").write_text("0x140000000\n")
    (tmp_path / "devices/region1/resource").write_text("nonsense\n")
    assert disks.number("pmem-140000000", directory=str(blocks)) == (259, 0)
    for name in ("pmem-1", "pmem-40000000", "pmem-", "", "0x140000000"):
        assert disks.find(name, str(blocks)) == ""
