"""The `linux` part of a config.json: what the guest accepts, and what it makes of it."""

from typing import Any

import pytest
from fixtures.guest_config import MINIMAL, accept, changed, mount, refusal, request
from sealrun_agent.container import spec

IDS = {"containerID": 0, "hostID": 100000, "size": 10}


def users(mappings: list[dict[str, int]]) -> dict[str, Any]:
    return {"namespaces": [{"type": "user"}], "uidMappings": mappings, "gidMappings": [IDS]}


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"uidMappings": [IDS]}, "linux.uidMappings: a user namespace and its mappings belong"),
        ({"namespaces": [{"type": "user"}]}, "linux.uidMappings: a user namespace and its"),
        (
            {"namespaces": [{"type": "user"}], "uidMappings": [IDS]},
            "linux.gidMappings: a user namespace and its mappings belong",
        ),
        (
            {"namespaces": [{"type": "user", "path": "/proc/1/ns/user"}]},
            "linux.namespaces[0].path: it is one of the host's",
        ),
        (
            users([IDS, {"containerID": 9, "hostID": 9, "size": 9}]),
            "linux.uidMappings: the range at 9 overlaps another",
        ),
        (
            users([{"containerID": 2, "hostID": 0, "size": 2**32 - 2}]),
            "linux.uidMappings: the range at 2 overlaps another, or is no range",
        ),
        (
            users([{"containerID": 2, "hostID": 0, "size": 0}]),
            "linux.uidMappings[0].size: expected",
        ),
        (
            users([{"containerID": n, "hostID": n, "size": 1} for n in range(341)]),
            "linux.uidMappings: there are more than 340",
        ),
        ({"personality": {"domain": "BSD"}}, "linux.personality: 'BSD' or a flag is not accepted"),
        ({"personality": {"domain": "LINUX", "flags": ["X"]}}, "linux.personality: 'LINUX' or a"),
        (
            {"resources": {"cpu": {"realtimeRuntime": 5}}},
            "linux.resources.cpu.realtimeRuntime: the guest has no real-time groups",
        ),
        (
            {"devices": [{"path": "/etc/passwd", "type": "c", "major": 1, "minor": 3}]},
            "linux.devices[0].path: '/etc/passwd' is not below /dev",
        ),
        (
            {"devices": [{"path": "/dev/../etc/x", "type": "p"}]},
            "linux.devices[0].path: '/dev/../etc/x' is not an absolute path",
        ),
        (
            {"devices": [{"path": "/dev/zero", "type": "b", "major": 1, "minor": 5}]},
            "linux.devices[0]: /dev/zero: devices of the host are not in the VM",
        ),
        ({"intelRdt": {}}, "linux: object contains unknown field intelRdt"),
        ({"namespaces": [{"type": "pid"}, {"type": "time"}]}, "linux.namespaces[1].type: "),
        ({"rootfsPropagation": "unbindable"}, "linux.rootfsPropagation: "),
        ({"maskedPaths": ["/a", "b"]}, "linux.maskedPaths[1]: 'b' is not an absolute path"),
        ({"readonlyPaths": ["/a/.."]}, "linux.readonlyPaths[0]: '/a/..' is not"),
        (
            {"sysctl": {"kernel.core_pattern": "|/x"}},
            "linux.sysctl: 'kernel.core_pattern' does not",
        ),
        ({"sysctl": {"vm.overcommit_memory": "1"}}, "linux.sysctl: "),
        ({"sysctl": {"net.../../kernel/x": "1"}}, "linux.sysctl: "),
        ({"sysctl": {"net/ipv4/x": "1"}}, "linux.sysctl: "),
        ({"resources": {"unified": {"../x": "1"}}}, "linux.resources.unified: '../x'"),
        ({"resources": {"unified": {"cgroup.kill": "1"}}}, "linux.resources.unified: "),
        (
            {"resources": {"devices": [{"allow": True, "type": "x"}]}},
            "linux.resources.devices[0].type: 'x' is not a type of device",
        ),
        (
            {"resources": {"devices": [{"allow": True, "access": "rwx"}]}},
            "linux.resources.devices[0].access: 'rwx' is not made of r, w and m",
        ),
        ({"resources": {"memory": {"limit": "x"}}}, "linux.resources.memory.limit: expected int"),
        (
            {"devices": [{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]},
            "linux.devices[0]: /dev/kvm: devices of the host are not in the VM",
        ),
        (
            {"devices": [{"path": "/dev/null", "type": "c", "major": 8, "minor": 0}]},
            "linux.devices[0]: /dev/null: devices of the host",
        ),
        (
            {"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}},
            "linux.seccomp.defaultAction: 'SCMP_ACT_NOTIFY' is not accepted",
        ),
        (
            {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}},
            "linux.seccomp: object contains unknown field listenerPath",
        ),
        (
            {
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["read"], "action": "SCMP_ACT_TRACE"}],
                }
            },
            "linux.seccomp.syscalls[0].action: 'SCMP_ACT_TRACE' is not accepted",
        ),
        (
            {
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
                }
            },
            "linux.seccomp.flags[0]: 'SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV' is not accepted",
        ),
    ],
)
def test_refused_in_linux(part: dict[str, Any], text: str) -> None:
    assert refusal(changed(linux=part)).startswith(text)


def test_namespaces_of_the_pod_are_joined() -> None:
    shm = mount("/dev/shm", "bind", "rbind", source="/var/lib/x/shm")
    result = accept(changed(linux={}, mounts=[shm]), joins=("ipc", "pid"), shm_bytes=4096)
    places = {one["type"]: one.get("path") for one in result["linux"]["namespaces"]}
    assert places == {
        "pid": "/pod/pid",
        "ipc": "/pod/ipc",
        "uts": None,
        "mount": None,
        "cgroup": None,
    }
    (made,) = [one for one in result["mounts"] if one["destination"] == "/dev/shm"]
    assert (made["type"], made["source"]) == ("bind", "/pod/shm")


@pytest.mark.parametrize("kind", ["mount", "user", "network", "../ipc", ""])
def test_other_namespaces_are_not_joined(kind: str) -> None:
    assert f"a namespace of type {kind!a} cannot be shared" in refusal(MINIMAL, joins=(kind,))


def test_a_user_namespace_of_its_own_joins_nothing() -> None:
    own = changed(linux=users([IDS]))
    assert "a user namespace, and others shared with a pod" in refusal(own, joins=("uts",))


def test_namespaces_are_the_guest_s_whatever_the_host_asks_for() -> None:
    given = [{"type": "network", "path": "/run/netns/x"}, {"type": "ipc", "path": "/proc/7/ns/ipc"}]
    result = accept(changed(linux={"namespaces": given, "cgroupsPath": "/../../host"}))
    assert result["linux"]["namespaces"] == accept(MINIMAL)["linux"]["namespaces"]
    assert result["linux"]["cgroupsPath"] == "/c/1"


def test_sysctl_of_the_network_are_the_agent_s_to_set() -> None:
    sysctl = {"net.ipv4.ping_group_range": "0 0", "kernel.shmmax": "1", "fs.mqueue.msg_max": "5"}
    accepted = spec.accept(request(changed(linux={"sysctl": sysctl})))
    assert accepted.network_sysctl == {"net.ipv4.ping_group_range": "0 0"}
    assert accepted.spec.linux.sysctl == {"kernel.shmmax": "1", "fs.mqueue.msg_max": "5"}


def test_what_describes_the_host_is_left_out() -> None:
    resources = {
        "memory": {"limit": 5, "swap": 7, "kernel": 8, "swappiness": 3, "reservation": 4},
        "cpu": {"shares": 9, "cpus": "0-63", "mems": "0", "realtimeRuntime": 0},
        "blockIO": {"weight": 5},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        "rdma": {},
        "network": {"classID": 1},
    }
    linux = {"resources": resources, "mountLabel": "system_u:x"}
    document = changed(linux=linux, annotations={"run.oci.hooks.stdout": "/x"})
    document["process"] |= {"apparmorProfile": "a", "selinuxLabel": "b"}
    document["hooks"] = {"poststop": [], "prestart": None}
    result = accept(document)
    assert result["linux"]["resources"] == {
        "memory": {"limit": 5, "reservation": 4},
        "cpu": {"shares": 9},
    }
    assert set(result) == {"ociVersion", "process", "root", "mounts", "linux"}
    assert result["process"] == MINIMAL["process"]


HOST_DEVICES = [
    {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232, "fileMode": 8624, "uid": 0},
    {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
]


def test_a_privileged_container_does_not_get_the_host_s_devices() -> None:
    everything = [{"allow": True, "access": "rwm"}]
    linux = {"devices": HOST_DEVICES, "resources": {"devices": everything}}
    result = accept(changed(linux=linux))
    assert "devices" not in result["linux"]
    assert result["linux"]["resources"]["devices"] == everything


@pytest.mark.parametrize(
    "rule",
    [
        {"allow": False, "access": "rwm"},
        {"allow": True, "access": "rw"},
        {"allow": True, "access": "rwm", "type": "c"},
        {"allow": True, "access": "rwm", "major": 10},
    ],
)
def test_a_container_is_privileged_only_by_a_rule_that_allows_everything(
    rule: dict[str, Any],
) -> None:
    linux = {"devices": HOST_DEVICES, "resources": {"devices": [rule]}}
    assert refusal(changed(linux=linux)).startswith("linux.devices[0]: /dev/kvm")


def test_devices_that_every_kernel_has() -> None:
    devices = [
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 5},
        {"path": "/dev/other/zero", "type": "u", "major": 1, "minor": 5},
        {"path": "/dev/pipe", "type": "p"},
    ]
    assert accept(changed(linux={"devices": devices}))["linux"]["devices"] == devices


def test_what_crun_makes_by_itself_is_left_to_it() -> None:
    devices = [
        {"path": "/dev/console", "type": "c", "major": 5, "minor": 1},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
    ]
    assert "devices" not in accept(changed(linux={"devices": devices}))["linux"]


def test_ids_are_mapped_to_themselves() -> None:
    part = users(
        [{"containerID": 5, "hostID": 7, "size": 3}, {"containerID": 0, "hostID": 1, "size": 1}]
    )
    result = accept(changed(linux=part))["linux"]
    assert {"type": "user"} in result["namespaces"]
    assert result["uidMappings"] == [
        {"containerID": 5, "hostID": 5, "size": 3},
        {"containerID": 0, "hostID": 0, "size": 1},
    ]
    assert result["gidMappings"] == [{"containerID": 0, "hostID": 0, "size": 10}]


def test_what_passes_as_it_is() -> None:
    linux = {
        "rootfsPropagation": "rshared",
        "personality": {"domain": "LINUX32"},
        "sysctl": {"kernel.domainname": "d"},
    }
    result = accept(changed(linux=linux, domainname="dom"))
    assert result["domainname"] == "dom"
    assert {name: result["linux"][name] for name in linux} == linux


def test_an_idle_group_is_said_to_the_kernel_in_its_own_words() -> None:
    resources = {"cpu": {"idle": 1}, "memory": {"limit": 7, "checkBeforeUpdate": True}}
    result = accept(changed(linux={"resources": resources}))["linux"]["resources"]
    assert result == {
        "unified": {"cpu.idle": "1"},
        "cpu": {},
        "memory": {"limit": 7, "checkBeforeUpdate": True},
    }


def test_the_kernel_s_file_systems_are_the_guest_s_own() -> None:
    """As engines mount them for --network=host and --ipc=host, and `spec --rootless` writes them."""
    result = accept(
        changed(
            mounts=[
                mount("/sys", "none", "rbind", "nosuid", "ro", source="/sys"),
                mount("/dev/mqueue", "bind", "bind", "nosuid", source="/dev/mqueue"),
                mount("data", "tmpfs", "size=1m"),
            ]
        )
    )
    assert result["mounts"] == [
        mount("/sys", "sysfs", "nosuid", "ro", source="sysfs"),
        mount("/dev/mqueue", "mqueue", "nosuid", source="mqueue"),
        mount("/data", "tmpfs", "size=1m", source="tmpfs"),
    ]


def test_hooks_of_the_guest_stay_and_those_of_the_host_go() -> None:
    hook = {"path": "/bin/setup", "args": ["setup", "-x"], "env": ["A=1"], "timeout": 5}
    hooks = {
        kind: [hook] for kind in ("createContainer", "startContainer", "poststart", "prestart")
    }
    assert accept(changed(hooks=hooks))["hooks"] == {
        "createContainer": [hook],
        "startContainer": [hook],
    }
    assert "hooks" not in accept(changed(hooks={"poststop": [hook]}))


def test_seccomp_passes_as_it_is() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["socket"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 22,
                "args": [
                    {"index": 0, "value": 2**64 - 1, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 9}
                ],
            },
        ],
    }
    assert accept(changed(linux={"seccomp": profile}))["linux"]["seccomp"] == profile


def test_what_only_an_owner_s_id_protects_is_read_only_in_a_user_namespace() -> None:
    part = users([IDS]) | {"readonlyPaths": ["/proc/sys", "/x"]}
    mounts = [mount("/sys", "sysfs", "nosuid", "ro"), mount("/y", "tmpfs")]
    result = accept(changed(linux=part, mounts=mounts))
    assert result["linux"]["readonlyPaths"] == [
        "/proc/sys", "/x", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger",
    ]  # fmt: skip
    places = [entry["destination"] for entry in result["mounts"]]
    assert places == ["/sys", "/sys/fs/cgroup", "/y"]
    assert "ro" in result["mounts"][1]["options"]
    mounts.append(mount("/sys/fs/cgroup/", "cgroup"))
    assert len(accept(changed(linux=part, mounts=mounts))["mounts"]) == 3
    text = refusal(changed(linux=part, mounts=[mount("/sys", "sysfs", "nosuid")]))
    assert text == "mounts[0].options: a sysfs in a user namespace has to be ro"
    assert accept(changed(linux=part))["mounts"][6]["destination"] == "/sys/fs/cgroup"
