#!/usr/bin/python3
"""What one running container of ours takes of the host's and of its guest's memory.

Usage: bench/memory.py [--memory MIB] [--samples N] [--prefix DIR]

Boots real VMs, one after the other, each with a container that sleeps, and looks at the shim, the
stand-in and the VMM once it runs, and at what the agent said of the guest's memory when it was
ready. The floors are a bare interpreter and a sleeping busybox in the same run: no Python process,
and no process at all, is smaller. PSS counts shared pages by share, so it is what one more container
costs; RSS counts them whole.

Prints a table of medians, and as its last line one JSON object. Needs root, an installation
(install.sh), docker-registry, skopeo and busybox-static.
"""

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
ID = "bench-memory"
SECONDS = 180
SETTLE_SECONDS = 2.0
ROLES = ("shim", "stand-in", "vmm")

Kib = dict[str, int]


@contextmanager
def registry(directory: Path) -> Iterator[str]:
    """A docker-registry on loopback; its address."""
    settings = directory / "registry.yml"
    settings.write_text(
        json.dumps(
            {
                "version": "0.1",
                "log": {"level": "info"},
                "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}},
                "http": {"addr": "127.0.0.1:0"},
            }
        )
    )
    log = directory / "registry.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["docker-registry", "serve", settings], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"docker-registry does not start: {log.read_text()[-500:]}")
            time.sleep(0.05)
        yield found[1]
    finally:
        server.terminate()
        server.wait()


def publish(directory: Path, address: str) -> str:
    """Push an image of one busybox; its reference."""
    layout = directory / "layout"
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        for name in ("dev", "proc", "sys"):
            directory_entry = tarfile.TarInfo(name)
            directory_entry.type, directory_entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory_entry)
    prefix = "application/vnd.oci.image"
    layer = blob(archive.getvalue(), f"{prefix}.layer.v1.tar")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    image = {
        "os": "linux",
        "architecture": machine,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    config = blob(json.dumps(image).encode(), f"{prefix}.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{prefix}.manifest.v1+json",
        "config": config,
        "layers": [layer],
    }
    entry = blob(json.dumps(manifest).encode(), f"{prefix}.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    reference = f"{address}/bench/sleep:1"
    copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:1"]
    subprocess.run([*copy, f"docker://{reference}"], check=True, timeout=SECONDS)
    return reference


def init_data(reference: str) -> str:
    """The annotation of one that lets the image's registry speak plain http, and the host choose the program."""
    address = reference.partition("/")[0]
    text = f"""version = "0.1.0"
algorithm = "sha256"
[data]
"sealrun.toml" = '''
[image]
insecure_registries = ["{address}"]
[container]
insecure_any_process = true
'''
"""
    return base64.b64encode(text.encode()).decode()


def bundle(directory: Path, reference: str, memory: int) -> Path:
    """The bundle of a container that sleeps."""
    annotations = {
        "io.sealrun.image": reference,
        "io.sealrun.init-data": init_data(reference),
        "io.sealrun.memory": str(memory),
    }
    process = {"args": ["/bin/busybox", "sleep", "1000"], "cwd": "/", "env": []}
    process |= {"user": {"uid": 0, "gid": 0}}
    kinds = ("pid", "mount", "ipc", "uts", "network")
    config = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "annotations": annotations,
        "linux": {"namespaces": [{"type": kind} for kind in kinds]},
    }
    path = directory / "bundle"
    (path / "rootfs").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def sealrun(program: Path, root: Path, *arguments: str) -> None:
    """One verb; ends this program where it fails."""
    with open(root / "errors", "w+") as errors:  # a pipe would be kept open by the container
        done = subprocess.run(
            [program, "--root", root / "state", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            timeout=SECONDS,
            check=False,
        )
        errors.seek(0)
        if done.returncode != 0:
            raise SystemExit(f"sealrun {arguments[0]} failed: {errors.read().strip()}")


def memory_of(pid: int) -> tuple[int, int]:
    """RSS and PSS of a process in KiB."""
    figures = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            figures[name] = int(rest.split()[0])
    return figures["Rss"], figures["Pss"]


def one_container(program: Path, directory: Path, path: Path, memory: int) -> Kib:
    """The figures of one container, by name."""
    state = directory / "state" / ID
    try:
        sealrun(program, directory, "create", "--bundle", str(path), ID)
        sealrun(program, directory, "start", ID)
        time.sleep(SETTLE_SECONDS)
        figures: Kib = {}
        for line in (state / "processes").read_text().splitlines():
            role, pid, _ = line.split()
            figures[f"{role} RSS"], figures[f"{role} PSS"] = memory_of(int(pid))
        hello = re.search(r"memory (\d+) KiB available", (state / "shim.log").read_text())
        if hello is None:
            raise SystemExit("shim.log does not hold what the agent said of its memory")
        figures["guest available"] = int(hello[1])
        figures["guest used"] = memory * 1024 - int(hello[1])
        return figures
    finally:
        sealrun(program, directory, "delete", "--force", ID)


def floor(*command: str) -> tuple[int, int]:
    """RSS and PSS of a program that only sleeps."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        return memory_of(process.pid)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--memory", type=int, default=1024, help="the VM's memory in MiB")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--prefix", type=Path, default=Path("/usr/local"))
    options = parser.parse_args()
    samples: list[Kib] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with registry(directory) as address:
            path = bundle(directory, publish(directory, address), options.memory)
            for _ in range(options.samples):
                sample = one_container(
                    options.prefix / "bin/sealrun", directory, path, options.memory
                )
                interpreter = floor(sys.executable, "-ISE", "-c", "import time; time.sleep(60)")
                sleeper = floor(str(BUSYBOX), "sleep", "60")
                sample["python3 -ISE RSS"], sample["python3 -ISE PSS"] = interpreter
                sample["busybox sleep RSS"], sample["busybox sleep PSS"] = sleeper
                samples.append(sample)
    medians = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
    report(medians, options.memory)


def report(medians: dict[str, float], memory: int) -> None:
    """The table, and the JSON line."""
    print(f"{'process':<16}{'RSS MiB':>10}{'PSS MiB':>10}")
    for role in (*ROLES, "python3 -ISE", "busybox sleep"):
        rss, pss = medians[f"{role} RSS"] / 1024, medians[f"{role} PSS"] / 1024
        print(f"{role:<16}{rss:>10.1f}{pss:>10.1f}")
    print(f"guest of {memory} MiB when the agent is ready: {medians['guest used'] / 1024:.0f} MiB")
    result = {
        "guest_used_kib": medians["guest used"],
        "guest_available_kib": medians["guest available"],
        **{
            f"{role.replace('-', '_')}_{kind.lower()}_kib": medians[f"{role} {kind}"]
            for role in ROLES
            for kind in ("RSS", "PSS")
        },
        "shim_pss_to_bare_python": round(medians["shim PSS"] / medians["python3 -ISE PSS"], 2),
        "stand_in_pss_to_busybox": round(medians["stand-in PSS"] / medians["busybox sleep PSS"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("needs root")
    main()
