"""config.json: read as engines write it; errors name the place."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_runtime import bundle
from sealrun_runtime.errors import InvalidRequest
from sealrun_runtime.oci_config import Memory

EXAMPLES = Path(__file__).parents[3] / "../shared/reference/examples"


def document(**changes: Any) -> dict[str, Any]:
    return {
        "ociVersion": "1.0.2",
        "process": {"args": ["sh"], "cwd": "/"},
        "root": {"path": "rootfs"},
        **changes,
    }


def parse(value: Any) -> bundle.ContainerSpec:
    return bundle.parse(json.dumps(value).encode(), "/bundle")


def test_a_minimal_bundle() -> None:
    spec = parse(document())
    assert spec.rootfs == "/bundle/rootfs"
    assert spec.args == ("sh",)
    assert not spec.terminal
    assert (spec.annotations, spec.namespaces, spec.cgroups_path) == ({}, (), "")


def test_an_absolute_root_and_nulls_as_go_writes_them() -> None:
    spec = parse(document(root={"path": "/r/../merged"}, mounts=None, annotations=None, linux=None))
    assert spec.rootfs == "/merged"
    assert spec.mounts == ()


@pytest.mark.parametrize("name", ["podman-run-config.json", "ctr-run-config.json"])
def test_what_real_engines_write(name: str) -> None:
    path = EXAMPLES / name
    if not path.exists():
        pytest.skip(f"../shared/reference/examples/{name} is not here")
    content = path.read_bytes()
    spec, raw = bundle.parse(content, "/bundle"), json.loads(content)
    assert list(spec.args) == raw["process"]["args"]
    assert len(spec.mounts) == len(raw["mounts"])
    assert [one.type for one in spec.namespaces] == [
        one["type"] for one in raw["linux"]["namespaces"]
    ]
    assert spec.cgroups_path == raw["linux"]["cgroupsPath"]
    assert spec.rootfs == raw["root"]["path"] or spec.rootfs == "/bundle/rootfs"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ociVersion": "2.0"}, "$.ociVersion: "),
        ({"process": None}, "$.process: expected `object`, got `null`"),
        ({"process": {"cwd": "/"}}, "$.process: object missing required field `args`"),
        ({"process": {"args": [], "cwd": "/"}}, "$.process.args: expected `array` of length >= 1"),
        ({"process": {"args": [1], "cwd": "/"}}, "$.process.args[0]: expected `str`, got `int`"),
        ({"process": {"args": ["x"], "cwd": "x"}}, "$.process.cwd: "),
        ({"root": {}}, "$.root: object missing required field `path`"),
        ({"annotations": {"a": 1}}, "$.annotations[...]: expected `str`, got `int`"),
        ({"linux": {"namespaces": [{"type": "moon"}]}}, "$.linux.namespaces[0].type: "),
        (
            {"linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}]}},
            "$.linux.namespaces[1]: a second namespace of type pid",
        ),
        (
            {"linux": {"namespaces": [{"type": "pid", "path": "x"}]}},
            "$.linux.namespaces[0].path: it is not an absolute path",
        ),
        ({"ociVersion": "1.x"}, "$.ociVersion: "),
        ({"annotations": {"": "x"}}, "$.annotations: an empty key"),
        ({"hostname": "h" * 65}, "$.hostname: expected `str` of length <= 64"),
        ({"root": {"path": ""}}, "$.root.path: "),
        ({"root": {"path": "r", "readonly": "yes"}}, "$.root.readonly: expected `bool`"),
        (
            {"mounts": [{"type": "proc"}]},
            "$.mounts[0]: object missing required field `destination`",
        ),
        ({"mounts": [{"destination": "/x", "options": ["a", 1]}]}, "$.mounts[0].options[1]: "),
        (
            {
                "mounts": [
                    {
                        "destination": "/x",
                        "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
                    }
                ]
            },
            "$.mounts[0].uidMappings: idmapped mounts are not supported",
        ),
        ({"hooks": {"poststop": [{"path": "x"}]}}, "$.hooks.poststop[0].path: "),
        ({"linux": {"devices": [{"type": "x", "path": "/d"}]}}, "$.linux.devices[0].type: "),
        (
            {"linux": {"devices": [{"type": "c", "path": "/d"}, {"type": "b", "path": "/d/"}]}},
            "$.linux.devices[1]: a second device at /d",
        ),
        (
            {"linux": {"resources": {"memory": {"limit": "1g"}}}},
            "$.linux.resources.memory.limit: expected `int | null`, got `str`",
        ),
        (
            {"linux": {"resources": {"devices": [{"allow": True, "access": "rx"}]}}},
            "$.linux.resources.devices[0].access: ",
        ),
        (
            {"linux": {"resources": {"hugepageLimits": [{"pageSize": "2", "limit": 1}]}}},
            "$.linux.resources.hugepageLimits[0].pageSize: ",
        ),
        (
            {"linux": {"resources": {"pids": {"limit": "5"}}}},
            "$.linux.resources.pids.limit: expected",
        ),
        (
            {"process": {"args": ["x"], "cwd": "/", "user": {"uid": 0}}},
            "$.process.user: object missing",
        ),
        ({"linux": {"personality": {"domain": "BSD"}}}, "$.linux.personality.domain: "),
        (
            {"linux": {"seccomp": {"defaultAction": "X", "syscalls": [{"names": []}]}}},
            "$.linux.seccomp.syscalls[0].names: ",
        ),
        ({"linux": {"maskedPaths": ["proc"]}}, "$.linux.maskedPaths[0]: "),
        ({"linux": {"rootfsPropagation": "loud"}}, "$.linux.rootfsPropagation: "),
        ({"linux": {"sysctl": {"a": 1}}}, "$.linux.sysctl[...]: expected `str`, got `int`"),
        (
            {"linux": {"devices": [{"type": "c", "path": "/dev/kvm", "major": 10, "minor": 232}]}},
            "$.linux.devices[0]: /dev/kvm: a VM cannot have the character device 10:232 of the host",
        ),
        (
            {"linux": {"devices": [{"type": "u", "path": "/dev/null", "major": 8, "minor": 3}]}},
            "$.linux.devices[0]: /dev/null: a VM cannot have the character device 8:3 of the host",
        ),
        (
            {"linux": {"uidMappings": [{"containerID": 0, "size": 1}]}},
            "$.linux.uidMappings[0]: object missing required field `hostID`",
        ),
    ],
)
def test_errors_name_the_json_path(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(document(**changes))
    assert caught.value.text.startswith(text)
    assert "regex" not in caught.value.text


def test_devices_that_a_vm_has_of_its_own() -> None:
    given = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
        {"path": "/dev/pipe", "type": "p"},
    ]
    parse(document(linux={"devices": given}))
    host_s = [{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]
    everything = {"devices": [{"allow": True, "access": "rwm"}]}
    parse(document(linux={"devices": host_s, "resources": everything}))  # left out in the guest


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000])
def test_what_is_no_configuration(content: bytes) -> None:
    with pytest.raises(InvalidRequest):
        bundle.parse(content, "/bundle")


@given(st.binary())
def test_noise_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidRequest):
        bundle.parse(content, "/bundle")


def test_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read .*/config.json: it does not exist"):
        bundle.read(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidRequest, match=r"cannot read .*/config.json: object missing"):
        bundle.read(str(tmp_path))
    (tmp_path / "config.json").write_bytes(b" " * (bundle.CONFIG_BYTES + 1))
    with pytest.raises(InvalidRequest, match="larger than"):
        bundle.read(str(tmp_path))


def test_a_current_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(
        InvalidRequest, match="cannot find the current directory: it does not exist"
    ):
        bundle.read(".")


def test_the_bytes_that_were_validated_are_the_bytes_that_are_returned(tmp_path: Path) -> None:
    content = json.dumps(document(), indent=3).encode()
    (tmp_path / "config.json").write_bytes(content)
    spec, returned = bundle.read(str(tmp_path))
    assert returned == content
    assert spec.bundle == str(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"args": ["a\0b"]}, "$.process.args[0]: "),
        ({"args": [""]}, "$.process.args[0]: it is empty"),
        ({"cwd": ""}, "$.process.cwd: "),
        ({"env": ["A=1\0"]}, "$.process.env[0]: "),
        ({"terminal": 1}, "$.process.terminal: expected `bool`, got `int`"),
        ({"consoleSize": {"height": 70000, "width": 1}}, "$.process.consoleSize.height: "),
        ({"user": {"uid": 2**32, "gid": 0}}, "$.process.user.uid: "),
        (
            {"user": {"uid": 0, "gid": 0, "additionalGids": [-1]}},
            "$.process.user.additionalGids[0]",
        ),
        ({"capabilities": {"bounding": [1]}}, "$.process.capabilities.bounding[0]: "),
        ({"oomScoreAdj": 1001}, "$.process.oomScoreAdj: "),
        ({"rlimits": [{"type": "NOFILE", "soft": 1, "hard": 1}]}, "$.process.rlimits[0].type: "),
        (
            {"rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]},
            "$.process.rlimits[0]: soft is above hard",
        ),
        (
            {"rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2},
            "$.process.rlimits[1]: a second limit of type RLIMIT_CPU",
        ),
    ],
)
def test_errors_in_the_process(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(document(process={"args": ["sh"], "cwd": "/", **changes}))
    assert caught.value.text.startswith(text)


def test_what_the_host_acts_upon() -> None:
    spec = parse(
        document(
            process={
                "args": ["sh"],
                "cwd": "/",
                "terminal": True,
                "consoleSize": {"height": 25, "width": 90},
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2**64 - 1, "hard": 2**64 - 1}],
            },
            root={"path": "r", "readonly": True},
            hostname="h",
            domainname="d",
            hooks={
                "prestart": [{"path": "/a"}],
                "poststop": [{"path": "/b", "args": ["b", "x"], "env": ["A=1"], "timeout": 5}],
            },
        )
    )
    assert (spec.terminal, spec.rows, spec.columns) == (True, 25, 90)
    assert (spec.rootfs, spec.rootfs_readonly) == ("/bundle/r", True)
    assert (spec.hostname, spec.domainname) == ("h", "d")
    assert spec.hooks.prestart is not None
    assert spec.hooks.prestart[0].path == "/a"
    assert spec.hooks.poststop is not None
    (hook,) = spec.hooks.poststop
    assert (hook.path, hook.args, hook.env, hook.timeout) == ("/b", ("b", "x"), ("A=1",), 5)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"invented": True}, "object contains unknown field `invented`"),
        (
            {"process": {"args": ["sh"], "cwd": "/", "noNewPrivilege": True}},
            "$.process: object contains unknown field `noNewPrivilege`",
        ),
        ({"linux": {"maskPaths": []}}, "$.linux: object contains unknown field `maskPaths`"),
        (
            {"linux": {"resources": {"memory": {"limt": 1}}}},
            "$.linux.resources.memory: object contains unknown field `limt`",
        ),
    ],
)
def test_unknown_members_are_refused(changes: dict[str, Any], text: str) -> None:
    """The guest would refuse them, too: what is misspelt might be what protects something."""
    with pytest.raises(InvalidRequest) as caught:
        parse(document(**changes))
    assert caught.value.text == text


IDS = [{"containerID": 0, "hostID": 100000, "size": 10}]
USERS = {"namespaces": [{"type": "user"}], "uidMappings": IDS, "gidMappings": IDS}


@pytest.mark.parametrize(
    ("linux", "user", "text"),
    [
        (
            {"namespaces": [{"type": "user"}]},
            {},
            "$.linux.uidMappings: they and a namespace of type",
        ),
        ({"uidMappings": IDS}, {}, "$.linux.uidMappings: they and a namespace of type user"),
        (
            {**USERS, "gidMappings": []},
            {},
            "$.linux.gidMappings: they and a namespace of type user",
        ),
        (USERS, {"uid": 10}, "$.process.user.uid: 10 is not in $.linux.uidMappings"),
        (USERS, {"gid": 10}, "$.process.user.gid: 10 is not in $.linux.gidMappings"),
        (
            USERS,
            {"additionalGids": [3, 11]},
            "$.process.user.gid: 11 is not in $.linux.gidMappings",
        ),
        (
            {"namespaces": [{"type": "user", "path": "/proc/1/ns/user"}]},
            {},
            "$.linux.namespaces[0].path: joining a user namespace is not supported",
        ),
        (
            {"namespaces": [{"type": "time"}]},
            {},
            "$.linux.namespaces[0].type: time namespaces are not supported",
        ),
    ],
)
def test_users_and_namespaces(linux: dict[str, Any], user: dict[str, Any], text: str) -> None:
    process = {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0, **user}}
    with pytest.raises(InvalidRequest) as caught:
        parse(document(linux=linux, process=process))
    assert caught.value.text.startswith(text)


def test_a_user_namespace() -> None:
    user = {"uid": 9, "gid": 0, "additionalGids": [1, 9]}
    parse(document(linux=USERS, process={"args": ["sh"], "cwd": "/", "user": user}))
    parse(document(linux=USERS))


def test_a_process_that_stands_for_itself() -> None:
    path = EXAMPLES / "podman-exec-process.json"
    if not path.exists():
        pytest.skip("../shared/reference/examples/podman-exec-process.json is not here")
    process = bundle.parse_process(path.read_bytes())
    assert list(process.args) == json.loads(path.read_bytes())["args"]
    with pytest.raises(InvalidRequest, match=r"^\$.cwd: "):
        bundle.parse_process(b'{"args": ["x"], "cwd": "x"}')


def test_resources_that_stand_for_themselves() -> None:
    text = b'{"memory":{"limit":1,"swap":-1},"cpu":{"quota":5},"pids":{}}'
    assert bundle.parse_resources(text).memory == Memory(limit=1, swap=-1)
    for content in (b"", b"[]", b'{"memory":{"limit":"1"}}', b'{"cpu":{"shares":-1}}', b'{"x":1}'):
        with pytest.raises(InvalidRequest):
            bundle.parse_resources(content)
