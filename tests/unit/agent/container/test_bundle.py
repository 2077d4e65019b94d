"""What is written for crun, and what is set for the VM's network."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from sealrun_agent.container import bundle, spec
from sealrun_agent.errors import StartError
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode

CONFIG = {
    "ociVersion": "1.0.2",
    "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
    "root": {"path": "rootfs"},
    "mounts": [{"destination": "/etc/hosts", "type": "bind"}],
    "linux": {},
}


NOTHING = bundle.Own(share="", sandbox="", volumes={})


def accept(**file: Any) -> spec.Accepted:
    config = json.dumps(CONFIG).encode()
    files = {0: messages.File(content=b"content", **file)}
    return spec.accept(
        messages.CreateContainer(id=1, container="c1", image="x", config=config, files=files)
    )


@pytest.mark.parametrize("name", ["a", "A_b.c-d+e", ".a", "...", "+", "0" * 128])
def test_names_of_containers(name: str) -> None:
    assert bundle.is_container_id(name)


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "a/b", "a\n", "é", "a\0", "0" * 129])
def test_what_is_no_name_of_a_container(name: str) -> None:
    assert not bundle.is_container_id(name)


def test_a_bundle_is_written_for_the_agent_s_eyes_only_and_removed(tmp_path: Path) -> None:
    accepted = accept(mode=0o640, uid=os.getuid(), gid=os.getgid())
    made = bundle.write_bundle(str(tmp_path), "c1", accepted, "/rootfs", NOTHING)
    assert made.directory == str(tmp_path / "c1")
    config = json.loads((tmp_path / "c1/config.json").read_text())
    assert config["root"] == {"path": "/rootfs"}
    assert config["linux"]["cgroupsPath"] == "/sealrun/c1"
    hosts = Path(config["mounts"][0]["source"])
    assert hosts.read_bytes() == b"content"
    assert hosts.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "c1/config.json").stat().st_mode & 0o777 == 0o600
    bundle.remove_bundle(made)
    bundle.remove_bundle(made)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    accepted = accept()
    (tmp_path / "file").touch()
    with pytest.raises(StartError) as caught:
        bundle.write_bundle(str(tmp_path / "file"), "c1", accepted, "/rootfs", NOTHING)
    assert caught.value.code is ErrorCode.RUNTIME_FAILED


def test_network_sysctl(tmp_path: Path) -> None:
    (tmp_path / "net/ipv4").mkdir(parents=True)
    bundle.set_sysctl({"net.ipv4.x": "0 0"}, str(tmp_path))
    assert (tmp_path / "net/ipv4/x").read_text() == "0 0"
    with pytest.raises(
        StartError, match=r"linux\.sysctl\.net\.none\.x: cannot set '1': No such file"
    ) as caught:
        bundle.set_sysctl({"net.none.x": "1"}, str(tmp_path))
    assert caught.value.code is ErrorCode.SPEC_REFUSED
