"""What a container with every right that the guest's kernel has to give reaches of the host: nothing.

Its program is the host's own Python, from a volume: the image has none.
"""

import json
import socket
from typing import Any

import pytest
from fixtures import podman as podmans
from fixtures import workload as workloads

pytestmark = [
    *(pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root),
    pytest.mark.virtiofsd,
]

# Every channel that a hypervisor could offer is tried, and what the try came to is told.
PROBE = r"""
import errno, glob, json, os, socket, sys

def tried(work):
    try:
        return str(work())
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))

def vsock(cid, port):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as one:
        one.settimeout(3)
        one.connect((cid, port))
    return "connected"

def tcp(port):
    with socket.create_connection(("127.0.0.1", port), timeout=3):
        return "connected"

def opened(path):
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    return "opened"

ports = sorted({*glob.glob("/dev/vport*"), *glob.glob("/dev/virtio-ports/*"), *glob.glob("/dev/hvc*")})
for number, name in enumerate(sorted(os.listdir("/sys/class/virtio-ports"))):
    major, minor = open(f"/sys/class/virtio-ports/{name}/dev").read().split(":")
    path = f"/tmp/port{number}"
    os.mknod(path, 0o20600, os.makedev(int(major), int(minor)))
    ports.append(path)
json.dump(
    {
        "vsock": {f"{c}:{p}": tried(lambda: vsock(c, p)) for c in (0, 1, 2, 3, 4) for p in (1, 22, 1024, 1025)},
        "ports": {path: tried(lambda: opened(path)) for path in ports},
        "loopback": tried(lambda: tcp(int(sys.argv[1]))),
        "root": os.geteuid(),
        "capable": int(next(l for l in open("/proc/self/status") if l.startswith("CapEff")).split()[1], 16),
    },
    sys.stdout,
)
"""
SYS_ADMIN = 1 << 21


def test_a_container_with_all_rights_reaches_nothing_of_the_host(
    podman: podmans.Podman, workload: workloads.Workload
) -> None:
    allowed = '[host]\ninsecure_shared_directories = ["/usr", "/lib", "/lib64"]'
    annotations = workloads.open_annotations(workload.plain, workload.registry.address, allowed)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=3):
            listener.accept()[0].close()  # it is there for those who are on the host
        ended = podman.run(
            ["/usr/bin/python3", "-ISE", "-c", PROBE, str(port)],
            annotations,
            *("--privileged", "--network", "none"),
            *("--volume", "/usr:/usr:ro", "--volume", "/usr/lib:/lib:ro"),
            *("--volume", "/usr/lib64:/lib64:ro"),
        )
        assert ended.status == 0, ended.stderr
        with pytest.raises(BlockingIOError):
            listener.accept()
    said: dict[str, Any] = json.loads(ended.stdout)
    assert said["root"] == 0
    assert said["capable"] & SYS_ADMIN
    assert "connected" not in said["vsock"].values(), said["vsock"]
    assert "opened" not in said["ports"].values(), said["ports"]
    assert said["ports"], "the agent's own channel is seen, and is the agent's"
    assert said["loopback"] == "ECONNREFUSED"
