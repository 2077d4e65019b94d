"""Roots and volumes of the host in real VMs, by virtiofs; runc runs the same as the oracle.

What mounts there are, and what may be done with them, is the subject of the component tests
(test_shares_on_simulator.py, test_shim_shared_tree.py); this is about the file system, a real guest
kernel, and Podman.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import oci, traces
from fixtures import podman as podmans
from fixtures import workload as workloads

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.root, pytest.mark.virtiofsd]

PROBE = Path(__file__).resolve().parents[1] / "probe/files.py"
USR_LINKS = ("bin", "lib", "lib64", "sbin")  # what Debian has as links into /usr


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A root that runs the host's Python, and what is shared beside it."""
    for name in ("rootfs", "volume", "other", "fixed"):
        (tmp_path / name).mkdir()
    for name in ("proc", "sys", "dev", "tmp", "etc", "usr", "probe"):
        (tmp_path / "rootfs" / name).mkdir()
    for name in USR_LINKS:
        (tmp_path / "rootfs" / name).symlink_to(f"usr/{name}")
    (tmp_path / "fixed/file").write_text("fixed")
    (tmp_path / "secret").write_text("outside of every share")
    return tmp_path


def bundle(name: str, place: Path, *arguments: str, capabilities: list[str]) -> Path:
    """A bundle that runs the probe."""
    command = ["/usr/bin/python3", "-ISE", "/probe/files.py", *arguments]
    made = oci.bundle(place / f"{name}-bundle", place / "rootfs", command, {})
    config = json.loads((made / "config.json").read_text())
    for source, destination, access in (
        ("/usr", "/usr", "ro"),
        (str(PROBE.parent), "/probe", "ro"),
        (str(place / "volume"), "/data", "rw"),
        (str(place / "other"), "/other", "rw"),
        (str(place / "fixed"), "/ro", "ro"),
    ):
        mount = {"destination": destination, "type": "bind", "source": source}
        config["mounts"].append({**mount, "options": ["rbind", access]})
    kinds = ("bounding", "effective", "permitted")
    config["process"]["capabilities"] = dict.fromkeys(kinds, capabilities)
    (made / "config.json").write_text(json.dumps(config))
    return made


def probe(name: str, place: Path, *arguments: str, capabilities: list[str]) -> dict[str, Any]:
    """What the probe says under a runtime."""
    binary = shutil.which(name)
    assert binary, f"{name} is not installed: run tests/run"
    runtime = oci.Runtime(name, binary, place / f"{name}-state")
    runtime.started.append("c1")
    made = bundle(name, place, *arguments, capabilities=capabilities)
    try:
        outcome = runtime("run", "--bundle", str(made), "c1")
    finally:
        runtime.clean()
    assert outcome.ok, outcome.stderr
    results: dict[str, Any] = json.loads(outcome.stdout)
    return results


ORDINARY = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD", "CAP_SETFCAP"]


def test_files_behave_as_they_do_on_the_host(place: Path) -> None:
    ours = probe("sealrun", place, capabilities=ORDINARY)
    written = {path.name: path.lstat().st_mode for path in (place / "volume").iterdir()}
    assert (place / "volume/last").read_bytes()[:4] == b"last", "a mapping is written when it ends"
    for name in ("volume", "other"):
        shutil.rmtree(place / name)
        (place / name).mkdir()
    theirs = probe("runc", place, capabilities=ORDINARY)
    assert ours == theirs
    assert written == {path.name: path.lstat().st_mode for path in (place / "volume").iterdir()}


def test_a_hostile_container_gets_no_further_than_its_shares(place: Path) -> None:
    everything = oci_capabilities()
    results = probe("sealrun", place, "hostile", str(place / "secret"), capabilities=everything)
    read_only = results["after remount"]
    assert results["remount"] is None, "in its own kernel it may do what it likes"
    assert read_only.pop("read") == "fixed"
    assert set(read_only.values()) == {"EROFS"}, "the host does not care"
    for name in ("disk", "mem", "trusted.overlay.opaque", "trusted.x"):
        assert results[name] in ("EPERM", "EOPNOTSUPP"), name
    assert results["escape"] == "ENOENT", "a link leads where the guest's kernel takes it"
    assert results["up"] == []
    assert (place / "fixed/file").read_text() == "fixed"
    assert os.listdir(place / "fixed") == ["file"]
    assert (place / "secret").read_text() == "outside of every share"


def oci_capabilities() -> list[str]:
    features = json.loads(subprocess.run(["sealrun", "features"], capture_output=True).stdout)
    names: list[str] = features["linux"]["capabilities"]
    return names


# --- Podman --------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tree = oci.busybox_tree(tmp_path / "tree")
    for applet in ("touch", "mount", "grep", "df", "tr", "stat", "cut", "wc"):
        (tree / "bin" / applet).symlink_to("busybox")
    return tree


@pytest.fixture
def volume() -> Iterator[str]:
    """A named volume of Podman's."""
    name = f"sealrun-test-{os.getpid()}"
    subprocess.run(["podman", "volume", "create", name], check=True, capture_output=True)
    yield name
    subprocess.run(["podman", "volume", "rm", "--force", name], check=True, capture_output=True)


@pytest.fixture
def secret() -> Iterator[str]:
    name = f"sealrun-test-{os.getpid()}"
    command = ["podman", "secret", "create", name, "-"]
    subprocess.run(command, input=b"s3cret", check=True, capture_output=True)
    yield name
    subprocess.run(["podman", "secret", "rm", name], check=True, capture_output=True)


def run(podman: podmans.Podman, root: Path, script: str, *options: str) -> podmans.Ended:
    """`podman run` from a directory of the host."""
    words = podman.arguments("run", [], {}, options)[:-1]
    return podman(*words, "--rootfs", str(root), "/bin/sh", "-c", script)


SCRIPT = """
cat /etc/hostname /run/secrets/key /etc/one; echo; stat -c '%a %u %g' /run/secrets/key
cat /ro/file; touch /ro/new 2>/dev/null || echo read-only
echo named >/named/new; echo rw >/rw/new; touch /scratch/x; ls /scratch /named
df -k /dev/shm | tr -s ' ' | cut -d ' ' -f 2; cat /proc/1/cmdline | tr '\\0' ' '
wc -c </etc/hidden
"""


@pytest.mark.parametrize("runtime", ["runc", "sealrun"])
def test_all_kinds_of_volumes(
    tmp_path: Path, root: Path, volume: str, secret: str, runtime: str
) -> None:
    podman = podmans.Podman(tmp_path, runtime)
    for name in ("ro", "rw"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"{name}\n")
    (tmp_path / "one").write_text("single")
    options = ["--rm", "--hostname", "boxed", "--tmpfs", "/scratch", "--shm-size", "8m", "--init"]
    options += ["--secret", f"{secret},target=key,mode=0440,uid=7", "-v", f"{volume}:/named"]
    options += ["-v", f"{tmp_path}/ro:/ro:ro", "-v", f"{tmp_path}/rw:/rw"]
    options += ["-v", f"{tmp_path}/one:/etc/one:ro", "-v", "/dev/null:/etc/hidden"]
    # A host may not let runc raise what it has.
    options += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
    try:
        ended = run(podman, root, SCRIPT, *options)
    finally:
        podman.clean()
    assert ended.status == 0, ended.stderr
    lines = ended.stdout.decode().splitlines()
    assert lines[:5] == ["boxeds3cretsingle", "440 7 0", "ro", "read-only", "/named:"]
    assert lines[5:10] == ["new", "", "/scratch:", "x", "1K-blocks"], lines
    assert lines[10] == "8192"
    assert lines[11].startswith("/run/podman-init -- /bin/sh -c")
    assert lines[-1].split()[-1] == "0", "nothing is read from /dev/null"
    assert (tmp_path / "rw/new").read_text() == "rw\n"
    assert os.listdir(tmp_path / "ro") == ["file"]


def test_a_local_image_and_copies_in_both_directions(
    podman: podmans.Podman, root: Path, volume: str, tmp_path: Path
) -> None:
    """An image that was built here has no registry: its root is shared, live."""
    image = f"localhost/sealrun-test-{os.getpid()}:1"
    packed = subprocess.run(["tar", "-C", str(root), "-c", "."], check=True, capture_output=True)
    command = ["podman", "import", "--quiet", "-", image]
    subprocess.run(command, input=packed.stdout, check=True, capture_output=True)
    try:
        script = "until test -e /named/stop; do sleep 0.2; done; cat /in /named/in; cat /etc/late"
        container = podman.start(
            ["/bin/sh", "-c", script], {}, "-v", f"{volume}:/named", image=image
        )
        assert state(container)["annotations"]["io.sealrun.root"] == "bundle"
        (tmp_path / "in").write_text("from the host\n")
        for target in ("/in", "/named/in", "/etc/late"):
            copied = podman("cp", str(tmp_path / "in"), f"{container}:{target}")
            assert copied.status == 0, copied.stderr
        done = podman(
            "exec", container, "/bin/sh", "-c", "cat /in; echo out >/out; echo out >/named/out"
        )
        assert done.stdout == b"from the host\n", done.stderr
        for source in ("/out", "/named/out"):
            copied = podman("cp", f"{container}:{source}", str(tmp_path / "back"))
            assert copied.status == 0, copied.stderr
            assert (tmp_path / "back").read_text() == "out\n"
        (tmp_path / "in").write_text("changed\n")
        assert podman("cp", str(tmp_path / "in"), f"{container}:/in").status == 0
        time.sleep(1.1)  # as long as the guest may believe what it knows of a name
        assert podman("exec", container, "/bin/touch", "/named/stop").status == 0
        assert podman("wait", container).stdout == b"0\n"
        assert podman("logs", container).stdout == b"changed\nfrom the host\nfrom the host\n"
        assert "A /out" in podman("diff", container).stdout.decode().splitlines()
        traces.wait_until_gone(container, podmans.STATE_ROOT)
        assert podman("rm", container).status == 0
    finally:
        podmans.remove_image(image)


def test_an_image_of_the_guest_s_own_with_a_volume_that_its_tenant_allows(
    podman: podmans.Podman, workload: workloads.Workload, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("of the host\n")
    options = ("-v", f"{tmp_path}/data:/data/host")
    host = '[host]\ninsecure_shared_directories = ["/data"]'
    address = workload.registry.address
    allowed = workloads.open_annotations(workload.plain, address, host)
    script = "cat /data/host/file /secret; echo new >/data/host/new"
    ended = podman.run(["/bin/sh", "-c", script], allowed, *options)
    assert ended.status == 0, ended.stderr
    assert ended.stdout == b"of the host\n" + workloads.SECRET
    assert (tmp_path / "data/new").read_text() == "new\n"
    refusing = workloads.open_annotations(workload.plain, address)
    ended = podman.run(["/bin/sh", "-c", script], refusing, *options)
    assert ended.status == 126
    assert "the init-data does not allow a directory of the host at /data/host" in ended.error
    assert "insecure_shared_directories" in ended.error


def test_a_root_that_is_read_only_stays_as_it_is(podman: podmans.Podman, root: Path) -> None:
    before = sorted(path.name for path in root.rglob("*"))
    script = "touch /x || echo no; touch /tmp/x && echo yes; ls -d /new/place/bin"
    ended = run(podman, root, script, "--rm", "--read-only", "-v", "/usr:/new/place:ro")
    assert ended.stdout == b"no\nyes\n/new/place/bin\n", ended.stderr
    left = sorted(path.name for path in root.rglob("*"))
    assert [name for name in left if name not in before] == ["mtab"], "which Podman makes"


def test_a_server_that_dies_ends_the_sandbox_and_says_so(
    podman: podmans.Podman, root: Path
) -> None:
    started = run(podman, root, "sleep 1000", "--detach")
    assert started.status == 0, started.stderr
    container = started.stdout.decode().strip()
    (server,) = traces.processes(container, "/usr/lib/qemu/virtiofsd")[:1]
    os.kill(server, signal.SIGKILL)
    assert podman("wait", container).stdout == b"137\n"
    traces.wait_until_gone(container, podmans.STATE_ROOT)


def state(container: str) -> dict[str, Any]:
    done = subprocess.run(["sealrun", "state", container], capture_output=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document
