"""What containers of one sandbox share in the real agent, with real crun: ipc, uts, pid, /dev/shm."""

import json
import re
import time
from pathlib import Path

import pytest
from fixtures.agent import SECONDS, Host, agent, config
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode

pytestmark = pytest.mark.root

SHM = {"destination": "/dev/shm", "type": "bind", "source": "/host/shm", "options": ["rbind"]}
NO_STDIO = {"stdin": 0, "stdout": 0, "stderr": 0}
LOOK = "for kind in ipc uts pid; do ls -l /proc/self/ns/$kind; done"


def say(host: Host, script: str, container: str, *joins: str) -> str:
    """What a container's script writes."""
    host.output.clear()
    config_ = config("sh", "-c", script, mounts=[SHM])
    assert host.run(container=container, config=config_, joins=joins, shm_bytes=1 << 20) == 0
    said = host.output.get(4, b"").decode()
    assert isinstance(host.delete(container), messages.Done)
    return said


def namespaces(listing: str) -> dict[str, str]:
    """Kind to `kind:[number]`, from LOOK."""
    return dict(
        zip(("ipc", "uts", "pid"), [line.split()[-1] for line in listing.splitlines()], strict=True)
    )


def test_only_what_is_joined_is_shared(host: Host) -> None:
    first = namespaces(say(host, LOOK, "a", "ipc", "uts"))
    second = namespaces(say(host, LOOK, "b", "ipc", "uts", "pid"))
    alone = namespaces(say(host, LOOK, "c"))
    third = namespaces(say(host, LOOK, "d", "pid"))
    assert (first["ipc"], first["uts"]) == (second["ipc"], second["uts"])
    assert second["pid"] == third["pid"]
    assert len({first["pid"], second["pid"], alone["pid"]}) == 3
    assert not set(alone.values()) & {*first.values(), *second.values()}
    own = {kind: (host.guest_path("/proc/1/ns") / kind).readlink() for kind in first}
    assert not {str(path) for path in own.values()} & {*first.values(), *second.values()}


def test_shared_memory(host: Host) -> None:
    assert say(host, "echo here >/dev/shm/word", "a", "ipc") == ""
    assert say(host, "cat /dev/shm/word", "b", "ipc") == "here\n"
    assert say(host, "ls /dev/shm", "c") == ""
    size = say(host, "dd if=/dev/zero of=/dev/shm/x bs=1k count=2k 2>&1 | tail -1", "d", "ipc")
    assert "1020+0 records out" in size, "its size is that of the first"


def test_host_name(host: Host) -> None:
    document = json.loads(config("true"))
    assert (
        host.run(
            container="a",
            config=json.dumps(document | {"hostname": "new"}).encode(),
            joins=("uts",),
        )
        == 0
    )
    del document["hostname"]
    document["process"]["args"] = ["hostname"]
    for container, joins, name in (("b", ("uts",), b"new\n"), ("c", (), b"sandbox\n")):
        host.output.clear()
        assert host.run(container=container, config=json.dumps(document).encode(), joins=joins) == 0
        assert host.output[4] == name


def wait_for_sleepers(host: Host, count: int) -> str:
    """Until a container that sees the others' processes sees so many; all that it sees."""
    deadline = time.monotonic() + SECONDS
    while True:
        seen = say(host, "ps", "look", "pid")
        if len(re.findall(r"root +sleep 2000$", seen, re.M)) == count:
            return seen
        assert time.monotonic() < deadline, seen


def test_processes_are_seen_and_outlive_only_their_own_container(host: Host) -> None:
    for name in ("a", "b"):
        made = host.create(
            *("sh", "-c", f"sleep 100{name == 'b'} & sleep 2000 & wait"),
            **({"container": name, "joins": ("pid",)} | NO_STDIO),
        )
        assert isinstance(made, messages.Done), made
        host.start(name)
    wait_for_sleepers(host, 2)
    host.request(messages.SignalContainer, container="a", signal=9)
    assert host.exit_code("a") == 137
    left = wait_for_sleepers(host, 1)  # what a left behind ends with it
    assert "sealrun" not in left, "the agent is not among them"
    for name in ("a", "b"):
        assert isinstance(host.delete(name), messages.Done)


def test_who_is_killed_from_a_neighbour_is_reported(host: Host) -> None:
    made = host.create("sleep", "3000", container="a", joins=("pid",), **NO_STDIO)
    assert isinstance(made, messages.Done), made
    host.start("a")
    script = "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline) in 'sleep 3000 ') kill -9 ${p#/proc/};; esac; done"
    say(host, script + "; kill -9 1; true", "b", "pid")
    assert host.exit_code("a") == 137
    assert "sleep" not in say(host, "ps | head -20 | tr -d '\\0'", "c", "pid"), (
        "the namespace is there, whatever was sent to its first process"
    )


def test_kernel_parameters_of_the_pod(tmp_path: Path) -> None:
    with agent(tmp_path) as host:
        host.expect(messages.Hello)
        done = host.request(
            messages.ConfigureSandbox,
            init_data=b"",
            hostname="pod",
            time_ns=0,
            sysctl={"kernel.shmmni": "77", "net.ipv4.ip_forward": "1"},
        )
        assert isinstance(done, messages.Done), done
        look = "cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_forward"
        assert say(host, look, "a", "ipc") == "77\n1\n"
        assert say(host, look, "b") == "4096\n1\n"


def test_a_parameter_of_the_vm_is_refused(tmp_path: Path) -> None:
    with agent(tmp_path) as host:
        host.expect(messages.Hello)
        failed = host.request(
            messages.ConfigureSandbox,
            init_data=b"",
            hostname="pod",
            time_ns=0,
            sysctl={"kernel.core_pattern": "|/x"},
        )
        assert failed.code is ErrorCode.SPEC_REFUSED
        assert "kernel.core_pattern" in failed.text


@pytest.mark.parametrize("allowed", [False, True])
def test_a_tenant_has_to_allow_shared_pids(tmp_path: Path, allowed: bool) -> None:
    wishes = "[container]\ninsecure_any_process = true\n" + "share_pid = true\n" * allowed
    text = f"version = '0.1.0'\nalgorithm = 'sha256'\n[data]\n'sealrun.toml' = '''\n{wishes}'''\n"
    with agent(tmp_path) as host:
        host.configure(text.encode())
        made = host.create("true", joins=("ipc", "uts", "pid"))
        if allowed:
            assert isinstance(made, messages.Done), made
        else:
            assert made.code is ErrorCode.POLICY_DENIED
            assert "the pid namespace is shared with the pod" in made.text
