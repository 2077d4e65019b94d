"""Flags of `podman run` that say what a container is: one container with many of them in a real VM, and one
of crun. What differs stands in docs/engines.md; what one flag means in detail is the subject of
test_conformance.py, which speaks config.json."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import podman as podmans
from fixtures import traces
from fixtures import workload as workloads
from fixtures.beside import Side

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]

SECRET = "sealrun-test-flags"
SEEN = {
    "user": "1000 user 77 77 3000",
    "umask": "0027",
    "hostname": "boxed.example",
    "env": "from-the-file from-the-option image",
    "secrets": "of a test of a test 440 1000 77",
    "read-only": "/: 1, /root: 1, /scratch: 0, /tmp: 0",
    "tmpfs": "1777 0 0 1024 1K-blocks",
    "capabilities": "0000000000000400 0000000000000400",
    "no new privileges": "1",
    "masked": "0",
    "proc": "hidepid=invisible",
    "limits": "100 200 0",
    "shm": "5120",
    "sysctl": "12345",
    "oom": "321",
    "device": "1:5",
    "program": "sh argument",
}
SCRIPT = """
b=/bin/busybox
try() { $b touch $1/new 2>/dev/null; echo $?; }
say() { echo "$1=$2"; }
say user "$($b id -u) $($b id -un) $($b id -g) $($b id -G)"
say umask "$(umask)"
say hostname "$(hostname)"
say env "$A $B $FROM"
say secrets "$(cat /run/secrets/one) $TWO $($b stat -c '%a %u %g' /run/secrets/one)"
say read-only "/: $(try /), /root: $(try /root), /scratch: $(try /scratch), /tmp: $(try /tmp)"
say tmpfs "$($b stat -c '%a %u %g' /scratch) $($b df -k /scratch | $b awk 'NR == 2 {print $2}') 1K-blocks"
say capabilities "$($b awk '/CapBnd|CapEff/ {printf "%s%s", s, $2; s = " "}' /proc/self/status)"
say "no new privileges" "$($b awk '/NoNewPrivs/ {print $2}' /proc/self/status)"
say masked "$(ls /data | wc -l)"
say proc "$($b awk '$2 == "/proc" {print $4}' /proc/mounts | $b tr , '\\n' | $b grep hidepid)"
say limits "$(ulimit -Sn) $(ulimit -Hn) $(ulimit -c)"
say shm "$($b df -k /dev/shm | $b awk 'NR == 2 {print $2}')"
say sysctl "$(cat /proc/sys/kernel/shmmax)"
say oom "$(cat /proc/self/oom_score_adj)"
say device "$($b stat -c '%t:%T' /dev/mine)"
say program "$0 $1"
"""
FLAGS = (
    *("--user", "1000:77", "--group-add", "3000", "--umask", "0027"),
    *("--hostname", "boxed.example", "--env", "B=from-the-option"),
    *("--secret", f"{SECRET},target=one,uid=1000,gid=77,mode=0440"),
    *("--secret", f"{SECRET},type=env,target=TWO"),
    *("--read-only", "--tmpfs", "/scratch:size=1m,mode=1777"),
    *("--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE"),
    *("--security-opt", "no-new-privileges", "--security-opt", "mask=/data"),
    *("--security-opt", "proc-opts=hidepid=2", "--security-opt", "apparmor=unconfined"),
    *("--ulimit", "nofile=100:200", "--ulimit", "core=0:0", "--shm-size", "5m"),
    *("--sysctl", "kernel.shmmax=12345", "--oom-score-adj", "321", "--pids-limit", "200"),
    *("--device", "/dev/zero:/dev/mine:r", "--memory", "100m", "--cpus", "1.5"),
    *("--label", "a=b", "--log-driver", "none"),
)


@pytest.fixture(scope="module")
def secret() -> Iterator[None]:
    """In Podman's store, under SECRET."""
    make = ["podman", "secret", "create", SECRET, "-"]
    subprocess.run(make, input=b"of a test", check=True, capture_output=True, timeout=60)
    yield
    subprocess.run(["podman", "secret", "rm", SECRET], check=True, capture_output=True, timeout=60)


def test_what_a_container_is_by_its_flags(side: Side, secret: None, tmp_path: Path) -> None:
    (tmp_path / "environment").write_text("# a comment\nA=from-the-file\nNOT_SET_HERE\n")
    file = ("--env-file", str(tmp_path / "environment"), "--env", "FROM=image")
    ended = side.run(["/bin/sh", "-c", SCRIPT, "sh", "argument"], "--rm", *FLAGS, *file)
    assert ended.status == 0, ended.stderr
    lines = ended.stdout.decode().splitlines()
    assert dict(line.partition("=")[::2] for line in lines) == SEEN


def test_without_a_control_group(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    """Of the engine's: everything stays in the caller's. The guest has its own, with the limits."""
    options = ("--cgroups", "disabled")
    container = podman.start(["/bin/sleep", "1000"], busybox_annotations, *options)
    there = traces.of(container, podmans.STATE_ROOT)
    assert any(one.startswith("process ") for one in there)
    assert not [one for one in there if one.startswith("cgroup ")]
    assert podman("exec", container, "/bin/sh", "-c", "exit 7").status == 7


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--annotation", "io.sealrun.init_data=x"), "did you mean io.sealrun.init-data?"),
        (("--network", "host"), "a VM cannot have the host's own network; give the container"),
        (("--cpu-rt-period", "1000000"), "realtimePeriod: the guest has no real-time groups"),
    ],
    ids=["annotation", "network", "real-time"],
)
def test_what_is_refused_and_no_vm_boots(side: Side, flags: tuple[str, ...], text: str) -> None:
    ended = side.run(["/bin/true"], "--rm", *flags)
    if not side.sealed:
        assert ended.status == 0, ended.stderr
        return
    assert ended.status == 126, ended.stderr
    assert text in ended.error
    assert len(ended.stderr.strip().splitlines()) == 1
    for container in side.podman.ids():
        traces.wait_until_gone(container, podmans.STATE_ROOT)
