"""Roots and volumes of the host through the whole of sealrun but a VM, beside runc and crun: the same
bundles, what their containers say, and what is on the host afterwards."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fixtures import oci, simulated
from sealrun_protocol import init_data
from sealrun_runtime import namespaces

pytestmark = [pytest.mark.root, pytest.mark.virtiofsd]

ORACLES = ("runc", "crun")


@dataclass(frozen=True)
class Case:
    """A script that tells what it finds; `@` in a mount's source is the host's directory."""

    name: str
    script: str
    mounts: tuple[dict[str, Any], ...]
    readonly: bool = False


def bind(source: str, destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": list(options)}


CASES = (
    Case(
        "a directory, writable",
        "cat /data/file; echo new >/data/new; ls /data; mkdir /data/sub/more",
        (bind("@/volume", "/data", "rbind", "rw"),),
    ),
    Case(
        "a directory, read-only",
        "cat /data/file; touch /data/new || echo no; rm /data/file || echo no; ls /data",
        (bind("@/volume", "/data", "rbind", "ro"),),
    ),
    Case(
        "files",
        "cat /one /two; echo more >>/one; echo more >>/two || echo no; cat /one /two",
        (bind("@/one", "/one", "bind"), bind("@/two", "/two", "bind", "ro")),
    ),
    Case(
        "a directory in another, and a file in that",
        "cat /data/file /data/inner/deep /data/sub/one; ls /data /data/inner",
        (
            bind("@/volume", "/data", "rbind"),
            bind("@/other", "/data/inner", "rbind", "ro"),
            bind("@/one", "/data/sub/one", "bind"),
        ),
    ),
    Case(
        "the same directory twice, once of each kind",
        "echo x >/rw/x; cat /ro/x; echo y >/ro/y || echo no; ls /rw",
        (bind("@/volume", "/rw", "rbind"), bind("@/volume", "/ro", "rbind", "ro")),
    ),
    Case(
        "what is mounted below, with rbind",
        "cat /data/mounted/inside; echo x >/data/mounted/x; ls /data/mounted",
        (bind("@/volume", "/data", "rbind"),),
    ),
    Case(
        "what is mounted below, with bind",
        "ls /data/mounted; cat /data/mounted/inside || echo no",
        (bind("@/volume", "/data", "bind"),),
    ),
    Case(
        "read-only is the mount alone",
        "touch /data/x || echo no; touch /data/mounted/x && echo yes",
        (bind("@/volume", "/data", "rbind", "ro"),),
    ),
    Case(
        "recursively read-only",
        "touch /data/x || echo no; touch /data/mounted/x || echo no",
        (bind("@/volume", "/data", "rbind", "rro"),),
    ),
    Case(
        "no program of it, no device, no rights of another",
        "/data/program && echo ran || echo no; grep ' /data ' /proc/mounts | tr , '\\n' | "
        "grep -xE 'nosuid|nodev|noexec'",
        (bind("@/volume", "/data", "rbind", "nosuid", "nodev", "noexec"),),
    ),
    Case("a program of it", "/data/program", (bind("@/volume", "/data", "rbind"),)),
    Case(
        "a tmpfs over a part of it",
        "ls /data/sub; touch /data/sub/gone; ls /data/sub",
        (
            bind("@/volume", "/data", "rbind"),
            {"destination": "/data/sub", "type": "tmpfs", "source": "tmpfs"},
        ),
    ),
    Case(
        "a source that is relative to the bundle, a destination to the root",
        "cat /data/file",
        (bind("relative", "data", "rbind"),),
    ),
    Case(
        "a place behind a link of the root",
        "cat /etc/linked/file; ls /tmp",
        (bind("@/volume", "/etc/linked", "rbind"),),
    ),
    Case(
        "a file hidden by /dev/null",
        "cat /etc/passwd; wc -c </etc/passwd; test -c /etc/passwd && echo device",
        (bind("/dev/null", "/etc/passwd", "bind", "ro"),),
    ),
    Case(
        "a root that is read-only, with a place that is not there yet",
        "touch /new || echo no; cat /data/new/place/file; touch /data/new/place/x && echo yes",
        (bind("@/volume", "/data/new/place", "rbind"),),
        readonly=True,
    ),
    Case(
        "owners, modes and links are the files' own",
        "stat -c '%n %u %g %a %F' /data/file /data/sub /data/link /data/set; readlink /data/link;"
        "chown 7:8 /data/file; chmod 4751 /data/file; ln -s /nowhere /data/dangling; mkfifo /data/fifo",
        (bind("@/volume", "/data", "rbind"),),
    ),
)


def host(directory: Path) -> Path:
    """What the host has to share, the same for each runtime."""
    for name in ("volume/sub", "volume/mounted", "other", "bundle/relative"):
        (directory / name).mkdir(parents=True)
    for name in ("volume/file", "bundle/relative/file", "one", "two", "other/deep"):
        (directory / name).write_text(f"{name.replace('bundle/relative', 'relative')}\n")
    volume = directory / "volume"
    (volume / "link").symlink_to("../../secret")
    (volume / "set").touch()
    os.chown(volume / "set", 3, 4)
    (volume / "set").chmod(0o6755)
    (volume / "program").write_text("#!/bin/sh\necho ran $0\n")
    (volume / "program").chmod(0o755)
    namespaces.mount("tmpfs", str(volume / "mounted"), "tmpfs", 0)
    (volume / "mounted/inside").write_text("inside\n")
    return directory


def root(directory: Path) -> Path:
    tree = oci.busybox_tree(directory / "rootfs")
    for applet in ("touch", "rm", "mkdir", "grep", "tr", "wc", "test", "stat", "readlink", "chown"):
        (tree / "bin" / applet).symlink_to("busybox")
    for applet in ("chmod", "ln", "mkfifo"):
        (tree / "bin" / applet).symlink_to("busybox")
    (tree / "etc/linked").symlink_to("/tmp/target")
    (tree / "tmp/target").mkdir()
    return tree


def listing(directory: Path) -> list[tuple[str, int, int, int]]:
    """Everything below a directory that a container may have changed."""
    found = []
    for path in sorted(directory.rglob("*")):
        about = path.lstat()
        content = hash(path.read_bytes()) if path.is_file() and not path.is_symlink() else 0
        name = str(path.relative_to(directory))
        # Of the mount points that were missing crun makes others than runc and we do.
        made = path.name in ("inner", "one")
        mode = stat.S_IFMT(about.st_mode) if made else about.st_mode
        found.append((name, mode, about.st_uid * 1000 + about.st_gid, content))
    return found


@dataclass(frozen=True)
class Ended:
    """What is compared."""

    status: int
    stdout: str
    volume: list[tuple[str, int, int, int]]
    root: list[str]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sealrun` below a prefix."""
    return simulated.install(tmp_path_factory.mktemp("prefix"))


@pytest.fixture
def runtimes(program: Path, tmp_path: Path) -> Iterator[list[oci.Runtime]]:
    made = [oci.Runtime("sealrun", str(program), tmp_path / "root")]
    made += [oci.oracle(name, tmp_path) for name in ORACLES]
    yield made
    for one in made:
        one.clean()
    assert not (tmp_path / "root").exists() or not os.listdir(tmp_path / "root")


def run(runtime: oci.Runtime, directory: Path, case: Case) -> Ended:
    shared = host(directory / runtime.name)
    try:
        rootfs = root(shared)
        bundle = oci.bundle(shared / "bundle", rootfs, case.script, runtime.annotations)
        path = bundle / "config.json"
        config = json.loads(path.read_text())
        config["linux"]["resources"] = {}
        config["root"]["readonly"] = case.readonly
        for mount in case.mounts:
            source = mount["source"].replace("@", str(shared))
            config["mounts"].append({**mount, "source": source})
        path.write_text(json.dumps(config))
        runtime.started.append("c1")
        outcome = runtime("run", "--bundle", str(bundle), "c1")
        print(runtime.name, outcome)
        places = sorted(
            str(entry.relative_to(rootfs))
            for entry in rootfs.rglob("*")
            if not str(entry.relative_to(rootfs)).startswith(("bin", "dev"))
        )
        output = outcome.stdout.decode().replace(str(shared), "@")
        return Ended(outcome.status, output, listing(shared / "volume"), places)
    finally:
        namespaces.detach(str(shared / "volume/mounted"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_volumes_are_what_they_are_elsewhere(
    case: Case, runtimes: list[oci.Runtime], tmp_path: Path
) -> None:
    ours, *others = (run(runtime, tmp_path, case) for runtime in runtimes)
    for name, theirs in zip(ORACLES, others, strict=True):
        assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout), name
        assert ours.volume == theirs.volume, name
        if not case.readonly:  # mount points go to a layer in the guest then
            assert ours.root == theirs.root, name
    assert mounts_of_the_host(tmp_path) == []


def mounts_of_the_host(path: Path) -> list[str]:
    with open("/proc/self/mountinfo") as file:
        return [line for line in file if str(path) in line]


def created(runtime: oci.Runtime, directory: Path, **annotations: str) -> tuple[Path, int]:
    """A container with a volume at /data and a file at /key that wait to be started: what the host
    shares, and the pid of the stand-in."""
    shared = host(directory / "host")
    bundle = oci.bundle(shared / "bundle", root(shared), "cat /data/later", annotations)
    config = json.loads((bundle / "config.json").read_text())
    mounts = (
        bind(str(shared / "volume"), "/data", "rbind"),
        bind(str(shared / "one"), "/key", "ro"),
    )
    config["mounts"] += mounts
    config["linux"]["resources"] = {}
    (bundle / "config.json").write_text(json.dumps(config))
    outcome = runtime.create(bundle, "c1")
    assert outcome.ok, outcome.stderr
    state = runtime.state("c1")
    assert state is not None
    return shared, state["pid"]


def enter(pid: int, script: str) -> "subprocess.CompletedProcess[str]":
    """As `podman cp` does it: in the stand-in's mount namespace, whose root is the container's."""
    command = ["nsenter", "--target", str(pid), "--mount", "--root", "/bin/sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def runtime(runtimes: list[oci.Runtime], tmp_path: Path) -> Iterator[oci.Runtime]:
    yield runtimes[0]
    for directory in tmp_path.glob("host/volume/mounted"):
        namespaces.detach(str(directory))


def test_engines_find_the_container_s_files_where_it_has_them(
    runtime: oci.Runtime, tmp_path: Path
) -> None:
    shared, pid = created(runtime, tmp_path)
    found = enter(pid, "cat /data/file /key; echo in >/data/later; echo in >/rooted; echo x >/key")
    assert found.stdout == "volume/file\none\n"
    assert "/key: Read-only file system" in found.stderr
    assert (shared / "rootfs/rooted").read_text() == "in\n"
    assert runtime("start", "c1").ok
    runtime.wait_for("c1", "stopped")
    assert (shared / "bundle/stdout").read_bytes() == b"in\n"


def test_what_is_put_into_the_host_s_copy_of_an_image_is_an_error(
    runtime: oci.Runtime, tmp_path: Path
) -> None:
    """The guest pulled the image itself: nothing there would ever reach it. A volume does."""
    image = {"io.sealrun.image": simulated.IMAGE}
    shared, pid = created(runtime, tmp_path, **image)
    found = enter(pid, "echo in >/data/later; cat /data/later; echo in >/rooted")
    assert found.stdout == "in\n"
    assert "/rooted: Read-only file system" in found.stderr
    assert runtime("start", "c1").ok
    runtime.wait_for("c1", "stopped")
    assert (shared / "bundle/stdout").read_bytes() == b"in\n"


def test_which_source_was_taken_stands_in_state_and_log(
    runtime: oci.Runtime, tmp_path: Path
) -> None:
    created(runtime, tmp_path)
    state = runtime.state("c1")
    assert state is not None
    assert state["annotations"]["io.sealrun.root"] == "bundle"
    log = (runtime.root / "c1/shim.log").read_text()
    assert "the guest sees of the host: root, 7, 8" in log


@pytest.mark.parametrize("victim", ["shim", "vmm", "virtiofsd", "virtiofsd-confined", "stand-in"])
def test_delete_force_leaves_nothing_of_it(
    runtime: oci.Runtime, tmp_path: Path, victim: str
) -> None:
    shared, _ = created(runtime, tmp_path)
    lines = (runtime.root / "c1/processes").read_text().splitlines()
    processes = {role: int(pid) for role, pid, _ in map(str.split, lines)}
    assert {"shim", "vmm", "virtiofsd", "virtiofsd-confined", "stand-in"} == set(processes)
    os.kill(processes[victim], 9)
    assert runtime("delete", "--force", "c1").ok
    assert [role for role, pid in processes.items() if oci.alive(pid)] == []
    assert not (runtime.root / "c1").exists()
    kept = [line for line in mounts_of_the_host(tmp_path) if "/volume/mounted " not in line]
    assert kept == []
    assert (shared / "volume/file").read_text() == "volume/file\n"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (bind("@/nowhere", "/data"), "$.mounts[7]: cannot share @/nowhere: it does not exist"),
        (
            bind("@/fifo", "/data"),
            "$.mounts[7]: cannot share @/fifo: a fifo of the host is of no use",
        ),
        (
            bind("@", "/data", "idmap"),
            "mounts[7].options[0]: option 'idmap' is not accepted",
        ),
    ],
)
def test_what_cannot_be_shared_is_named(
    runtime: oci.Runtime, tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    bundle = oci.bundle(tmp_path / "bundle", oci.busybox_tree(tmp_path / "rootfs"), "true", {})
    config = json.loads((bundle / "config.json").read_text())
    config["mounts"].append({**change, "source": change["source"].replace("@", str(tmp_path))})
    config["linux"]["resources"] = {}
    (bundle / "config.json").write_text(json.dumps(config))
    outcome = runtime.create(bundle, "c1")
    assert outcome.status == 1
    assert text.replace("@", str(tmp_path)) in outcome.stderr


INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"sealrun.toml" = """\n{}\n"""\n'


@pytest.mark.parametrize(
    ("ours", "texts"),
    [
        ("", ["the init-data does not allow a root that the host shares"]),
        (
            "[host]\ninsecure_shared_root = true",
            [
                "$.mounts[7]: the init-data does not allow a directory of the host at /data",
                "name the place in [host] insecure_shared_directories of the init-data",
            ],
        ),
        ("[host]\ninsecure_shared_root = true\ninsecure_shared_directories = ['/data']", []),
    ],
)
def test_a_tenant_decides_before_a_vm_boots(
    runtime: oci.Runtime, tmp_path: Path, ours: str, texts: list[str]
) -> None:
    annotation = init_data.encode_annotation(INIT_DATA.format(ours).encode())
    bundle = oci.bundle(
        tmp_path / "bundle",
        oci.busybox_tree(tmp_path / "rootfs"),
        "ls /data",
        {"io.sealrun.init-data": annotation},
    )
    config = json.loads((bundle / "config.json").read_text())
    config["mounts"].append(bind(str(tmp_path / "rootfs"), "/data", "rbind", "ro"))
    config["linux"]["resources"] = {}
    (bundle / "config.json").write_text(json.dumps(config))
    runtime.started.append("c1")
    outcome = runtime("run", "--bundle", str(bundle), "c1")
    if not texts:
        assert (outcome.status, "not-executable" in outcome.stdout.decode()) == (0, True), outcome
        return
    assert outcome.status == 1
    for text in texts:
        assert text in outcome.stderr
    assert not runtime.root.exists(), "nothing was made"
