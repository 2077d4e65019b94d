#!/usr/bin/python3
"""What `state` and `kill` cost: against a bare interpreter, runc and crun, in the same run.

Usage: bench/hot_path.py [--samples N] [--root DIR --container ID]

runc and crun hold a real container each (a shell that sleeps). Ours is, unless --container names a
real one of the state root DIR, a state directory made here, with a process that listens on its
control socket as a shim does: the command line runs the same code on it, and no VM is needed.

Prints a table of medians in milliseconds, the samples of all commands taken in turn so that a busy
machine burdens them alike, and as its last line one JSON object. A peer that cannot make a container
on this machine is reported as null, and why on stderr. Needs root, runc, crun, busybox.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEALRUN = ROOT / "runtime/bin/sealrun"
ID = "bench-hot-path"

SHIM = """
import socket
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    if connection.recv(4096):
        connection.send(b"ok")
    connection.close()
"""


@contextmanager
def state_directory() -> Iterator[str]:
    """A state root with a container of ours that has no VM; its path."""
    with tempfile.TemporaryDirectory() as root:
        directory = Path(root, ID)
        directory.mkdir()
        # As large as Podman's annotations make it.
        annotations = {f"io.kubernetes.cri-o.annotation-{n}": "x" * 40 for n in range(12)}
        state = {"ociVersion": "1.0.2", "id": ID, "status": "running", "pid": os.getpid()}
        state |= {"bundle": "/var/lib/containers/" + "b" * 80, "annotations": annotations}
        (directory / "state.json").write_text(json.dumps(state, separators=(",", ":")) + "\n")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(directory / "shim.sock"))
            listener.listen(128)
            shim = subprocess.Popen([sys.executable, "-c", SHIM], stdin=listener)
        try:
            yield root
        finally:
            shim.kill()
            shim.wait()


@contextmanager
def peer(program: str) -> Iterator[list[str] | None]:
    """A running container of `program`; how to call it, None where it cannot make one here."""
    with tempfile.TemporaryDirectory() as directory:
        command = [program, "--root", f"{directory}/root"]
        try:
            make_container(command, Path(directory, "bundle"))
        except (OSError, subprocess.CalledProcessError) as error:
            sys.stderr.write(f"{program} has no container here: {error}\n")
            yield None
            return
        try:
            yield command
        finally:
            delete = [*command, "delete", "--force", ID]
            subprocess.run(delete, timeout=60, capture_output=True, check=False)


def make_container(command: list[str], bundle: Path) -> None:
    """Run a container that sleeps. Raises OSError, CalledProcessError."""
    (bundle / "rootfs/bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", bundle / "rootfs/bin/busybox")
    subprocess.run([command[0], "spec"], cwd=bundle, check=True, capture_output=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["/bin/busybox", "sleep", "1000"]}
    config["process"].pop("rlimits", None)
    (bundle / "config.json").write_text(json.dumps(config))
    run = [*command, "run", "--detach", "--bundle", str(bundle), ID]
    # crun refuses a hybrid host with a controller on cgroup2; without sight of cgroup2 it works.
    without_cgroup2 = 'umount /sys/fs/cgroup/unified && exec "$@"'
    words = ""
    for attempt in (run, ["unshare", "--mount", "sh", "-c", without_cgroup2, "sh", *run]):
        with open(bundle / "errors", "w+") as errors:  # a pipe would be kept open by the container
            null = subprocess.DEVNULL
            done = subprocess.run(
                attempt, stdin=null, stdout=null, stderr=errors, timeout=60, check=False
            )
            errors.seek(0)
            words = errors.read().strip()
        if done.returncode == 0:
            return
    raise OSError(words)


def once(command: list[str]) -> float:
    """Milliseconds from spawning `command` to its end; its output goes nowhere."""
    null = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in (0, 1)]
    begin = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=null)
    _, status = os.waitpid(pid, 0)
    taken = time.perf_counter() - begin
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return taken * 1000


def measure(commands: dict[str, list[str]], samples: int) -> dict[str, float]:
    """The median of each command in milliseconds, after a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(samples + 3):
        for name, command in commands.items():
            milliseconds = once(command)
            if number >= 3:
                taken[name].append(milliseconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--root", help="state root of a real container of ours")
    parser.add_argument("--container", help="id of a real container of ours")
    options = parser.parse_args()
    if options.samples < 20:
        parser.error("a median of fewer than 20 samples says little")
    with ExitStack() as stack:
        root = options.root or stack.enter_context(state_directory())
        ours = [str(SEALRUN), "--root", root]
        ident = options.container or ID
        commands = {
            "python": ["/usr/bin/python3", "-ISE", "-c", "pass"],
            "sealrun state": [*ours, "state", ident],
            "sealrun kill": [*ours, "kill", ident, "0"],
        }
        for program in ("runc", "crun"):
            found = shutil.which(program)
            call = stack.enter_context(peer(found)) if found else None
            if call:
                commands[f"{program} state"] = [*call, "state", ID]
                commands[f"{program} kill"] = [*call, "kill", ID, "0"]
        medians = measure(commands, options.samples)
    report(medians, options.samples, "real" if options.container else "state directory without VM")


def report(medians: dict[str, float], samples: int, container: str) -> None:
    """The table, and the ratios."""
    bare = medians["python"]
    print(f"median of {samples}; our container: {container}")
    print(f"{'command':16} {'ms':>7} {'over python':>12} {'ratio':>7}")
    for name, value in medians.items():
        print(f"{name:16} {value:7.2f} {value - bare:+12.2f} {value / bare:7.2f}")

    def ratio(of: str, to: str) -> float | None:
        return round(medians[of] / medians[to], 3) if to in medians else None

    result = {"bench": "hot_path", "samples": samples, "container": container}
    result |= {
        f"{verb}_over_python_ms": round(medians[f"sealrun {verb}"] - bare, 2) for verb in VERBS
    }
    result |= {f"{verb}_to_python": ratio(f"sealrun {verb}", "python") for verb in VERBS}
    for program in ("runc", "crun"):
        pairs = {verb: ratio(f"sealrun {verb}", f"{program} {verb}") for verb in VERBS}
        result |= {f"{verb}_to_{program}": pairs[verb] for verb in VERBS}
    print(json.dumps(result))


VERBS = ("state", "kill")

if __name__ == "__main__":
    main()
