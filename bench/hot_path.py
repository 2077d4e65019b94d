#!/usr/bin/python3
"""What the hot verbs cost: against a bare interpreter, runc and crun, in the same run.

Usage: bench/hot_path.py [--samples N] [--root DIR --container ID] [--simulated]

`state` and `kill` are asked of one container again and again; `start` and `delete` (with `create`
before them) can be asked of each container once, so that each sample is a life. runc and crun hold
real containers (a shell that sleeps). Ours is, unless --container names a real one of the state root
DIR for `state` and `kill`, a state directory made here, with a process that listens on its control
socket as a shim does: the command line runs the same code on it, and no VM is needed. What `create`,
`start` and `delete` wait for, shim and guest, is not in these figures. --simulated adds whole lives
with the real shim and agent on the hypervisor that tests/ simulates (tests/run makes its environment).

Prints a table of medians in milliseconds, the samples of all commands taken in turn so that a busy
machine burdens them alike, and as its last line one JSON object. The budget is the bare interpreter
and 3 ms. A peer that cannot make a container on this machine is reported as null, and why on stderr.
Needs root, runc, crun, busybox.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SEALRUN = ROOT / "runtime/bin/sealrun"
ID = "bench-hot-path"
WARM_UP = 3
REPEATED = ("state", "kill")
ONCE = ("start", "delete")  # of each container
LIVES = ("create", *ONCE)
BUDGET_MS = 3.0

SHIM = """
import socket
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    if connection.recv(4096):
        connection.send(b"ok")
    connection.close()
"""


class Subject(NamedTuple):
    """A runtime. call: how to call it. create: what its `create` needs in front. bundle: of a
    container that sleeps; empty where there is none."""

    call: list[str]
    create: list[str]
    bundle: str


@contextmanager
def state_directory() -> Iterator[tuple[str, Callable[[str], None]]]:
    """A state root, and what makes containers of ours in it that have no VM."""
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(f"{root}/socket")
            listener.listen(128)
            shim = subprocess.Popen([sys.executable, "-c", SHIM], stdin=listener)
        stack.callback(shim.wait)
        stack.callback(shim.kill)

        def make(container: str) -> None:
            directory = Path(root, container)
            directory.mkdir()
            # As large as Podman's annotations make it.
            annotations = {f"io.kubernetes.cri-o.annotation-{n}": "x" * 40 for n in range(12)}
            state = {"ociVersion": "1.0.2", "id": ID, "status": "running", "pid": os.getpid()}
            state |= {"bundle": "/var/lib/containers/" + "b" * 80, "annotations": annotations}
            text = json.dumps(state, separators=(",", ":")) + "\n"
            (directory / "state.json").write_text(text)
            for name in ("oci.json", "shim.json", "shim.log", "console.log", "vmm.log"):
                (directory / name).write_text(text)
            # Processes that have ended, as they have when the shim answers.
            lines = (f"{role} {2**22 - 1} 1" for role in ("shim", "stand-in", "vmm"))
            (directory / "processes").write_text("\n".join(lines) + "\n")
            os.link(f"{root}/socket", directory / "shim.sock")

        yield root, make


@contextmanager
def peer(program: str) -> Iterator[Subject | None]:
    """A runtime of the host with a running container; None where it cannot make one here."""
    with tempfile.TemporaryDirectory() as directory:
        call = [program, "--root", f"{directory}/root"]
        bundle = Path(directory, "bundle")
        try:
            write_bundle(program, bundle)
            create = way_to_create(call, bundle)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.stderr.write(f"{program} has no container here: {error}\n")
            yield None
            return
        try:
            yield Subject(call, create, str(bundle))
        finally:
            delete = [*call, "delete", "--force", ID]
            subprocess.run(delete, timeout=60, capture_output=True, check=False)


@contextmanager
def simulated() -> Iterator[Subject]:
    """Ours with nothing simulated but the hypervisor."""
    sys.path[:0] = [str(ROOT / name) for name in ("tests", "runtime", "vmm", "guest-agent")]
    from fixtures import simulated as simulator

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "prefix").mkdir()
        program = simulator.install(directory / "prefix", boot_seconds=60)
        annotations = {"io.sealrun.image": simulator.IMAGE}
        bundle = simulator.bundle(directory / "bundle", "sleep 1000", annotations)
        yield Subject([str(program), "--root", f"{directory}/root"], [], str(bundle))


def write_bundle(program: str, bundle: Path) -> None:
    """The bundle of a container that sleeps. Raises CalledProcessError."""
    (bundle / "rootfs/bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", bundle / "rootfs/bin/busybox")
    subprocess.run([program, "spec"], cwd=bundle, check=True, capture_output=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["/bin/busybox", "sleep", "1000"]}
    config["process"].pop("rlimits", None)
    (bundle / "config.json").write_text(json.dumps(config))


def way_to_create(call: list[str], bundle: Path) -> list[str]:
    """Run a container that stays; what has to stand in front of the command that makes one. Raises
    OSError."""
    run = [*call, "run", "--detach", "--bundle", str(bundle), ID]
    # crun refuses a hybrid host with a controller on cgroup2; without sight of cgroup2 it works.
    without_cgroup2 = 'umount /sys/fs/cgroup/unified && exec "$@"'
    words = ""
    for front in ([], ["/usr/bin/unshare", "--mount", "sh", "-c", without_cgroup2, "sh"]):
        with open(bundle / "errors", "w+") as errors:  # a pipe would be kept open by the container
            null = subprocess.DEVNULL
            done = subprocess.run(
                [*front, *run], stdin=null, stdout=null, stderr=errors, timeout=60, check=False
            )
            errors.seek(0)
            words = errors.read().strip()
        if done.returncode == 0:
            return front
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


Taken = dict[str, list[float]]
"""Milliseconds of each sample, by command."""


def ask(taken: Taken, commands: dict[str, list[str]]) -> None:
    """One sample of each command that can be repeated."""
    for name, command in commands.items():
        taken.setdefault(name, []).append(once(command))


def live(taken: Taken, name: str, subject: Subject, container: str) -> None:
    """One container's life; without its creation where there is no bundle."""
    commands = {
        "start": [*subject.call, "start", container],
        "delete": [*subject.call, "delete", "--force", container],
    }
    if subject.bundle:
        create = [*subject.call, "create", "--bundle", subject.bundle, container]
        commands = {"create": [*subject.create, *create], **commands}
    ask(taken, {f"{name} {verb}": command for verb, command in commands.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--root", help="state root of a real container of ours")
    parser.add_argument("--container", help="id of a real container of ours")
    parser.add_argument("--simulated", action="store_true", help="also whole lives of ours")
    options = parser.parse_args()
    if options.samples < 20:
        parser.error("a median of fewer than 20 samples says little")
    taken: Taken = {}
    with ExitStack() as stack:
        root, make = stack.enter_context(state_directory())
        make(ID)
        call = [str(SEALRUN), "--root", options.root or root]
        subjects = {"sealrun": Subject([str(SEALRUN), "--root", root], [], "")}
        commands = {"python": ["/usr/bin/python3", "-ISE", "-c", "pass"]}
        commands["sealrun state"] = [*call, "state", options.container or ID]
        commands["sealrun kill"] = [*call, "kill", options.container or ID, "0"]
        for program in ("runc", "crun"):
            found = shutil.which(program)
            subject = stack.enter_context(peer(found)) if found else None
            if subject:
                commands[f"{program} state"] = [*subject.call, "state", ID]
                commands[f"{program} kill"] = [*subject.call, "kill", ID, "0"]
                subjects[program] = subject
        if options.simulated:
            subjects["simulated"] = stack.enter_context(simulated())
        for number in range(options.samples + WARM_UP):
            make(f"{ID}-{number}")
            ask(taken, commands)
            for name, subject in subjects.items():
                live(taken, name, subject, f"{ID}-{number}")
    kept = {name: values[WARM_UP:] for name, values in taken.items()}
    report(kept, "real" if options.container else "state directory without VM")


def report(taken: Taken, container: str) -> None:
    """The table, and the ratios. Over the interpreter: the median of the differences, sample by sample,
    which holds when the machine's speed drifts."""
    medians = {name: statistics.median(values) for name, values in taken.items()}
    pairs = {name: zip(values, taken["python"], strict=True) for name, values in taken.items()}
    more = {name: statistics.median(a - b for a, b in pair) for name, pair in pairs.items()}
    bare, samples = medians["python"], len(taken["python"])
    print(f"median of {samples}; our container: {container}")
    print(f"{'command':18} {'ms':>8} {'over python':>12} {'ratio':>7}")
    for verb in ("python", *REPEATED, *LIVES):
        for name, value in medians.items():
            if name == verb or name.endswith(f" {verb}"):
                print(f"{name:18} {value:8.2f} {more[name]:+12.2f} {value / bare:7.2f}")

    def ratio(of: str, to: str) -> float | None:
        return round(medians[of] / medians[to], 3) if to in medians else None

    verbs = (*REPEATED, *ONCE)
    result = {"bench": "hot_path", "samples": samples, "container": container}
    over = {verb: round(more[f"sealrun {verb}"], 2) for verb in verbs}
    result |= {f"{verb}_over_python_ms": over[verb] for verb in verbs}
    result |= {"within_budget": all(value <= BUDGET_MS for value in over.values())}
    result |= {f"{verb}_to_python": ratio(f"sealrun {verb}", "python") for verb in verbs}
    for program in ("runc", "crun"):
        ratios = {verb: ratio(f"sealrun {verb}", f"{program} {verb}") for verb in verbs}
        result |= {f"{verb}_to_{program}": ratios[verb] for verb in verbs}
    if "simulated create" in medians:
        result |= {f"simulated_{verb}_ms": round(medians[f"simulated {verb}"], 1) for verb in LIVES}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
