"""Podman of a user without rights: their own images, networks and volumes, and VMs that are theirs.

runc runs the same where it can: what it does is what a user expects.
"""

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import podman as podmans
from fixtures import rootless
from fixtures import workload as workloads

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]

SERVE = "echo ready; exec /bin/busybox httpd -f -p 8080 -h /etc"


@pytest.fixture(scope="module")
def user() -> Iterator[rootless.User]:
    with rootless.user() as user:
        yield user


@pytest.fixture
def podman(user: rootless.User) -> Iterator[podmans.Podman]:
    """Theirs; nothing of its containers may be left."""
    driver = user.podman(place(user, "cids"))
    if driver("image", "exists", podmans.STUB).status != 0:
        made = driver("import", "--quiet", "-", podmans.STUB, stdin=bytes(10240))
        assert made.status == 0, made.stderr
    yield driver
    driver.clean()
    assert list(user.state_root.iterdir()) == []
    commands = [command(pid) for pid in user.processes()]
    assert not [one for one in commands if "sealrun" in one or "qemu" in one], commands


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def place(user: rootless.User, name: str) -> Path:
    """A directory of theirs."""
    directory = user.home / name
    directory.mkdir(exist_ok=True)
    os.chown(directory, user.uid, user.uid)
    return directory


def test_an_encrypted_image(
    podman: podmans.Podman, sealed_annotations: workloads.Annotations
) -> None:
    script = "cat /secret; echo; id -u; exit 42"
    ended = podman.run(["/bin/sh", "-c", script], sealed_annotations)
    assert ended.status == 42, ended.stderr
    assert ended.stdout == workloads.SECRET + b"\n0\n"


@pytest.mark.parametrize("handler", ["rootlesskit", "slirp4netns"])
def test_a_service(
    user: rootless.User,
    podman: podmans.Podman,
    busybox_annotations: workloads.Annotations,
    handler: str,
) -> None:
    """Published (rootlesskit is what Podman does by default), asked, looked into, stopped: as with any
    container of theirs."""
    port = free_port()
    container = podman.start(
        ["/bin/sh", "-c", SERVE],
        busybox_annotations,
        *("--network", f"slirp4netns:port_handler={handler}"),
        *("--publish", f"127.0.0.1:{port}:8080"),
    )
    wait_for_log(podman, container, b"ready\n")
    assert ask(port).startswith(b"root:x:0:0:")
    assert (user.state_root / container).is_dir()
    vmms = [pid for pid in user.processes() if "qemu" in command(pid)]
    assert len(vmms) == 1, "the VM is the user's"
    executed = podman("exec", "--user", "1000", container, "id", "-u")
    assert (executed.status, executed.stdout) == (0, b"1000\n"), executed.stderr
    assert podman("exec", container, "/bin/sh", "-c", "exit 7").status == 7
    top = podman("top", container, "pid", "args")
    assert top.status == 0, top.stderr
    assert podman("stop", "--time", "1", container).status == 0
    assert podman("wait", container).stdout == b"137\n"


def test_a_network_of_theirs(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    """Two containers on a bridge in the user's own namespace: by name, and published."""
    port = free_port()
    assert podman("network", "create", "sealrun-test").status == 0
    try:
        web = podman.start(
            ["/bin/sh", "-c", SERVE],
            busybox_annotations,
            *("--network", "sealrun-test", "--name", "web"),
            *("--publish", f"127.0.0.1:{port}:8080"),
        )
        wait_for_log(podman, web, b"ready\n")
        assert ask(port).startswith(b"root:x:0:0:")
        ended = podman.run(
            ["/bin/busybox", "wget", "-qO-", "http://web:8080/passwd"],
            busybox_annotations,
            *("--network", "sealrun-test"),
        )
        assert ended.status == 0, ended.stderr
        assert ended.stdout.startswith(b"root:x:0:0:")
    finally:
        podman("rm", "--force", "--time", "0", "--all")
        assert podman("network", "rm", "sealrun-test").status == 0


def test_a_pod_of_theirs(
    user: rootless.User, podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    """Two containers in one VM, whose port is published at the pod."""
    port = free_port()
    publish = ("--network", "slirp4netns", "--publish", f"127.0.0.1:{port}:8080")
    made = podman("pod", "create", "--name", "sealrun-test", *publish)
    assert made.status == 0, made.stderr
    try:
        inside = ("--pod", "sealrun-test")
        web = podman.start(["/bin/sh", "-c", SERVE], busybox_annotations, *inside)
        wait_for_log(podman, web, b"ready\n")
        assert ask(port).startswith(b"root:x:0:0:")
        script = ["/bin/busybox", "wget", "-qO-", "http://127.0.0.1:8080/passwd"]
        ended = podman.run(script, busybox_annotations, *inside)
        assert ended.status == 0, ended.stderr
        assert ended.stdout.startswith(b"root:x:0:0:")
        assert len([pid for pid in user.processes() if "qemu" in command(pid)]) == 1
    finally:
        podman("pod", "rm", "--force", "--time", "0", "sealrun-test")


@pytest.mark.virtiofsd
@pytest.mark.parametrize("runtime", ["runc", "sealrun"])
def test_a_root_and_a_volume_of_theirs(
    user: rootless.User, podman: podmans.Podman, runtime: str
) -> None:
    """What the container's root makes in a volume is the user's."""
    root, volume = place(user, f"root-{runtime}"), place(user, f"volume-{runtime}")
    for name in ("bin", "dev", "etc", "proc", "sys"):
        (root / name).mkdir()
        os.chown(root / name, user.uid, user.uid)
    shutil.copy(workloads.BUSYBOX, root / "bin/busybox")
    (volume / "given").write_text("from the host")
    os.chown(volume / "given", user.uid, user.uid)
    script = (
        "cd /data; busybox cat given; echo; busybox stat -c %u:%g given; echo made >made; "
        "busybox mkdir sub; busybox chown 1000:1000 sub; busybox stat -c %u:%g made sub"
    )
    driver = podman if runtime == "sealrun" else user.podman(place(user, "cids"), runtime)
    ended = driver(
        *("run", "--rm", "--network", "none", "--volume", f"{volume}:/data"),
        *("--rootfs", str(root), "/bin/busybox", "sh", "-c", script),
    )
    assert ended.status == 0, ended.stderr
    assert ended.stdout == b"from the host\n0:0\n0:0\n1000:1000\n"
    about = (volume / "made").stat()
    assert (about.st_uid, about.st_gid) == (user.uid, user.uid)
    assert (volume / "sub").stat().st_uid >= 100_000, "one of the user's subordinate ids"


def test_a_user_who_keeps_their_id(
    user: rootless.User, podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    """--userns=keep-id: in the container they are who they are. With files of the host it is refused:
    only the host's root may mount them with other owners."""
    kept = ("--network", "none", "--userns", "keep-id")
    ended = podman.run(["/bin/busybox", "id", "-u"], busybox_annotations, *kept)
    assert (ended.status, ended.stdout) == (0, f"{user.uid}\n".encode()), ended.stderr
    root = str(place(user, "kept"))
    refused = podman("run", "--rm", *kept, "--rootfs", root, "/bin/true")
    assert refused.status != 0
    assert "$.linux.uidMappings: cannot share files with a container" in refused.stderr
    assert "(--userns), or without files of the host" in refused.stderr


def test_what_is_not_theirs(user: rootless.User, podman: podmans.Podman) -> None:
    """A root that the user may not read is an error for them, not a way around it."""
    hidden = place(user, "hidden")
    os.chown(hidden, 0, 0)
    hidden.chmod(0o700)
    ended = podman("run", "--rm", "--network", "none", "--rootfs", str(hidden), "/bin/true")
    assert ended.status != 0
    assert "permission denied" in ended.stderr.lower()


def kvm_is_the_groups() -> bool:
    """Whether this host's /dev/kvm is closed to those who are not in its group."""
    return os.path.exists("/dev/kvm") and os.stat("/dev/kvm").st_mode & 0o006 != 0o006


@pytest.mark.skipif(not kvm_is_the_groups(), reason="/dev/kvm is missing, or everybody's")
def test_a_user_hears_which_group_kvm_wants(user: rootless.User) -> None:
    """By the one command that they would ask."""
    check = subprocess.run([*user.prefix, "sealrun", "check"], capture_output=True, timeout=120)
    (kvm,) = (line for line in check.stdout.decode().splitlines() if "  KVM: " in line)
    assert kvm == (
        "no  KVM: cannot use KVM: /dev/kvm: Permission denied; "
        "add the user to the group kvm and log in again; without it VMs are emulated"
    )
    assert "with tcg" in check.stdout.decode().splitlines()[-1]


def test_the_users_own_list(user: rootless.User) -> None:
    """`sealrun list` of theirs looks below XDG_RUNTIME_DIR, and not into root's."""
    driver = user.podman(place(user, "cids"))
    listed = podmans.run([*user.prefix, driver.runtime, "list", "--format", "json"])
    assert listed.status == 0, listed.stderr
    assert json.loads(listed.stdout) in ([], None)


def free_port() -> int:
    """None of those that the kernel gives to whoever connects: nobody takes it meanwhile."""
    while True:
        number = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", number))
            return number


def ask(port: int) -> bytes:
    """A file of the service that is published at the port."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/passwd", timeout=60) as answer:
                content: bytes = answer.read()
                return content
        except OSError:  # it says that it is ready before it listens
            assert time.monotonic() < deadline
            time.sleep(0.2)


def wait_for_log(podman: podmans.Podman, container: str, text: bytes) -> None:
    deadline = time.monotonic() + 60
    while podman("logs", container).stdout != text:
        assert time.monotonic() < deadline, podman("logs", container)
        time.sleep(0.2)
