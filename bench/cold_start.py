#!/usr/bin/python3
"""From nothing to the first word: `sealrun run` of a plain and of an encrypted image, and the floor.

Usage: bench/cold_start.py [--samples N] [--prefix DIR]

Three cold starts in turn, so that a busy machine burdens them alike; each is the time until the first
byte of output:

    floor      the same kernel in the same QEMU with the same memory, and an initrd of one busybox
    plain      sealrun run: boot, agent, pull, verify, unpack, crun
    encrypted  the same, and attestation, key release and decryption

Registry and key broker are real and on loopback. Prints a table of medians in seconds, where the
time of the plain start goes, and as its last line one JSON object. Needs root, an installation
(install.sh), busybox-static, docker-registry, skopeo, buildah and openssl.
"""

import argparse
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, redirect_stdout
from datetime import datetime
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "demo"))

from sealrun_demo import broker, secret, services, tenant, tools  # noqa: E402

ID = "bench-cold-start"
KEY = "default/image-key/demo"
SECONDS = 180
WORD = b"up\n"
# What the shim notes of a start, in order, and what the time before each was spent on.
STEPS = (
    (r"launched the VM", "command line, stand-in, shim"),
    (r"hello: ", "VM and agent boot"),
    (r"pull: ", "configuration"),
    (r"start: ", "pull, verify, decrypt, unpack"),
)


def bundle(directory: Path, annotations: dict[str, str]) -> Path:
    """A bundle whose program says one word."""
    process = {"args": ["/bin/sh", "-c", "echo up"], "cwd": "/", "env": ["PATH=/bin"]}
    process |= {"user": {"uid": 0, "gid": 0}}
    kinds = ("pid", "mount", "ipc", "uts", "network")
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": str(directory / "rootfs")},
        "process": process,
        "annotations": annotations,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in kinds]},
    }
    (directory / "rootfs").mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def first_word(program: str, directory: Path, root: Path) -> tuple[float, dict[str, float]]:
    """`sealrun run`: seconds to the first output, and seconds by step from the shim's log."""
    started, wall = time.monotonic(), time.time()
    command = [program, "--root", str(root), "run", "--bundle", str(directory), ID]
    with subprocess.Popen(
        ["timeout", "--kill-after=5", str(SECONDS), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        word = process.stdout.read(len(WORD))
        elapsed = time.monotonic() - started
        log = root / ID / "shim.log"
        steps = spent(log.read_text(), wall, elapsed) if log.exists() else {}
        _, errors = process.communicate(timeout=SECONDS)
    if word != WORD or process.returncode != 0:
        raise SystemExit(f"sealrun run failed: {errors.decode(errors='replace').strip()}")
    return elapsed, steps


def spent(log: str, started: float, elapsed: float) -> dict[str, float]:
    """Seconds by step, from the times of the shim's notes (UTC)."""
    found: dict[str, float] = {}
    before = started
    for pattern, label in STEPS:
        line = re.search(rf"^(\S+) \S+ {pattern}", log, re.M)
        if line is None:
            return {}
        at = datetime.fromisoformat(line[1]).timestamp()
        found[label] = at - before
        before = at
    return found | {"crun, program, output": started + elapsed - before}


def floor_of(prefix: Path) -> float:
    """One boot of the installed kernel with almost nothing in it, in the same machine as a sandbox."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:4]\n"
        "import floor\n"
        "from sealrun_vmm import assets, cmdline, kvm\n"
        "from sealrun_vmm.spec import VmSpec\n"
        "image, accelerator = assets.locate(sys.argv[4]), kvm.choose_accelerator()\n"
        "print(floor.seconds(VmSpec(name='floor', accelerator=accelerator, cpus=1,"
        " memory_mib=1024, kernel=image.kernel, initrd=image.initrd,"
        " cmdline=cmdline.base(accelerator), console='/dev/stdout')))"
    )
    roots = [str(ROOT / "bench"), str(ROOT / "vmm"), str(prefix / "lib/sealrun/site-packages")]
    guest = str(prefix / "share/sealrun/guest")
    return float(tools.run([sys.executable, "-c", code, *roots, guest], show=False))


def prepare(stack: ExitStack, directory: Path, prefix: Path) -> dict[str, Path]:
    """Registry, broker and both images; the bundles by name."""
    address = stack.enter_context(services.registry(str(directory / "registry")))
    layout = tenant.build(str(directory), secret.Secret())
    private, public = tenant.make_key(str(directory))
    encrypted = tenant.encrypt(layout, public, address)
    plain = f"{address}/bench/app:1"
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
    tools.run([*copy, f"oci:{layout}:app", f"docker://{plain}"], show=False)
    kbs = stack.enter_context(
        broker.serving(str(prefix / "bin/sealrun-broker"), str(directory / "broker"))
    )
    kbs.store(KEY, private)
    bundles = {}
    for name, image in (("plain", tenant.Image(plain, [])), ("encrypted", encrypted)):
        init_data = directory / f"{name}.toml"
        tenant.write_init_data(str(init_data), image, kbs.url, kbs.certificate)
        document, end, rest = init_data.read_text().rpartition("'''")
        any_process = "[container]\ninsecure_any_process = true\n"  # ours says one word
        init_data.write_text(f"{document}{any_process}{end}{rest}")
        if name == "encrypted":
            kbs.allow(KEY, hashlib.sha256(init_data.read_bytes()).hexdigest())
        command = [str(prefix / "bin/sealrun"), "init-data", str(init_data)]
        annotations = {
            "io.sealrun.image": image.reference,
            "io.sealrun.init-data": tools.run(command, show=False).strip(),
        }
        bundles[name] = bundle(directory / f"bundle-{name}", annotations)
    return bundles


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="cold start of a sealed container")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--prefix", type=Path, default=Path("/usr/local"))
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"floor": [], "plain": [], "encrypted": []}
    steps: list[dict[str, float]] = []
    with ExitStack() as stack, redirect_stdout(StringIO()):  # the demonstration's parts talk
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundles = prepare(stack, directory, options.prefix)
        for _ in range(options.samples):
            seconds["floor"].append(floor_of(options.prefix))
            for name, path in bundles.items():
                program = str(options.prefix / "bin/sealrun")
                elapsed, parts = first_word(program, path, directory / "root")
                seconds[name].append(elapsed)
                if name == "plain" and parts:
                    steps.append(parts)
    report(seconds, steps)


def report(seconds: dict[str, list[float]], steps: list[dict[str, float]]) -> None:
    """The table, and the JSON object on the last line."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\n{'cold start':<34}{'median s':>10}{'min':>8}{'max':>8}{'x floor':>9}")
    for name, values in seconds.items():
        ratio = medians[name] / medians["floor"]
        print(
            f"{name:<34}{medians[name]:>10.2f}{min(values):>8.2f}{max(values):>8.2f}{ratio:>9.2f}"
        )
    if steps:
        print(f"\n{'of the plain start':<34}{'median s':>10}")
        for label in steps[0]:
            print(f"{label:<34}{statistics.median(part[label] for part in steps):>10.2f}")
    print(
        json.dumps(
            {
                "samples": len(seconds["floor"]),
                **{f"{name}_seconds": round(value, 3) for name, value in medians.items()},
                "plain_over_floor": round(medians["plain"] / medians["floor"], 3),
                "encrypted_over_floor": round(medians["encrypted"] / medians["floor"], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
