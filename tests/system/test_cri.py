"""A pod as a kubelet asks for it, in a real VM: the engine has an image without layers, the guest pulls the real one.

What else an engine asks for is tried on a simulated hypervisor, with runc beside it (tests/component/test_cri.py).
"""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import cri, cri_engines
from fixtures import workload as workloads
from fixtures.cri_engines import Engine

pytestmark = [
    *(pytest.mark.vm, pytest.mark.containerd, pytest.mark.cni),
    *(pytest.mark.registry, pytest.mark.root),
]

PROGRAM = "/usr/local/bin/sealrun"
SHELL = ("/bin/sh", "-c")
SERVER = "echo up; while :; do echo answer | busybox nc -l -p 80; done"


@pytest.fixture(scope="module", params=["containerd", "containerd-2", "crio"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if missing := cri_engines.missing(request.param):
        pytest.skip(missing)
    with tempfile.TemporaryDirectory(prefix="cri-") as name:
        with cri_engines.serve(request.param, Path(name), PROGRAM) as engine:
            yield engine


@pytest.fixture
def client(engine: Engine) -> Iterator[cri.Cri]:
    client = engine.connect()
    yield client
    engine.clean()
    client.close()


def stub(engine: Engine, reference: str) -> None:
    """Give the engine an image of that name, and no layer of it."""
    storage = engine.directory / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{engine.directory}/root"\n'
        f'runroot = "{engine.directory}/runroot"\n'
    )
    where = {"CONTAINERD_ADDRESS": str(engine.socket), "CONTAINERS_STORAGE_CONF": str(storage)}
    options = ["--containerd"] if engine.is_containerd else []
    done = subprocess.run(
        [PROGRAM, "image", "stub", *options, "--tls-verify=false", reference],
        capture_output=True,
        text=True,
        env={**os.environ, **where},
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, f"{reference}\n"), done.stderr


def pull(engine: Engine, client: cri.Cri, reference: str) -> None:
    """As the kubelet has it done, layers and all. (To CRI-O's registries this one would have to be made known.)"""
    if engine.is_containerd:
        client("PullImage", image={"image": reference})
    else:
        engine.fetch(reference)


def test_an_encrypted_image(
    engine: Engine,
    client: cri.Cri,
    workload: workloads.Workload,
    sealed_annotations: workloads.Annotations,
) -> None:
    """The host cannot even store it, and need not: the guest attests, gets the key and decrypts it.

    Before the next test, in which containerd unpacks the same layer, plain: it would find that."""
    reference = f"{workload.registry.address}/test/encrypted:1"
    if engine.is_containerd:  # to CRI-O's registries this one would have to be made known
        with pytest.raises(cri.Refused, match=r"failed to (extract layer|unpack)"):
            client("PullImage", image={"image": reference})
    stub(engine, reference)
    document = {"io.sealrun.init-data": sealed_annotations["io.sealrun.init-data"]}
    pod = engine.pod(client, "sealrun", document, reference)
    pod.up()
    job = pod.run("job", "/bin/cat", "/secret")
    assert job.wait_for(cri.EXITED).exit_code == 0
    wanted = workloads.SECRET.decode()
    assert job.lines() == [("stdout", wanted)]


def test_a_pod_in_a_real_vm(
    engine: Engine,
    client: cri.Cri,
    workload: workloads.Workload,
    busybox_annotations: workloads.Annotations,
) -> None:
    reference = f"{workload.registry.address}/test/plain:1"
    stub(engine, reference)
    document = {"io.sealrun.init-data": busybox_annotations["io.sealrun.init-data"]}
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "81"}
    pod = engine.pod(client, "sealrun", document, reference, sysctls=sysctls)
    blobs = workload.registry.requests("/blobs/")
    by_tag = workload.registry.requests("/test/plain/manifests/1")
    pod.up()
    assert workload.registry.requests("/blobs/") == blobs, "the host wants no layer"
    web = pod.run("web", *SHELL, SERVER)
    web.expect("up\n")
    assert workload.registry.requests("/blobs/") > blobs
    by_tag += engine.name == "containerd-2"  # says what the pod says; others say the stub's digest
    assert workload.registry.requests("/test/plain/manifests/1") == by_tag
    # The stub has no files: this one came from the registry.
    assert web.run("/bin/cat", "/secret") == (0, workloads.SECRET.decode(), "")
    assert web.run("/bin/hostname")[1] == "pod\n"
    place = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    assert web.run("/bin/cat", place)[1] == "81\n"
    assert answer(pod.status.network.ip) == b"answer\n"

    limits = {"cpu_period": 100_000, "cpu_quota": 50_000, "memory_limit_in_bytes": 64 << 20}
    job = pod.run(
        "job",
        *SHELL,
        "busybox nc 127.0.0.1 80; cat /sys/fs/cgroup/memory.max; exit 9",
        linux={"resources": limits, "security_context": {"namespace_options": pod.namespaces}},
    )
    assert job.wait_for(cri.EXITED).exit_code == 9
    job.expect(f"answer\n{64 << 20}\n")
    client("UpdateContainerResources", container_id=web.id, linux={**limits, "cpu_shares": 512})
    assert web.run("/bin/cat", "/sys/fs/cgroup/memory.max")[1] == f"{64 << 20}\n"
    assert web.stream(*SHELL, "read line; echo $line; exit 4", stdin=b"in\n")[:2] == (4, "in\n")
    pull(engine, client, reference)
    whole = pod.run("whole", "/bin/cat", "/secret")
    assert whole.wait_for(cri.EXITED).exit_code == 0
    web.stop(1)
    assert web.wait_for(cri.EXITED).exit_code == 137
    pod.stop()
    assert pod.status.state == cri.NOT_READY


def answer(address: str) -> bytes:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            with socket.create_connection((address, 80), timeout=5) as connection:
                if said := connection.recv(64):
                    return said
    return b""
