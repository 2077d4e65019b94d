"""`exec`: the process that is asked for, its stand-in, its ends."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures import descriptors, oci
from fixtures.cli import SECONDS, World

pytestmark = pytest.mark.root

PROCESS = {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["A=1"]}


def asked(world: World) -> dict[str, Any]:
    """The process object of the last exec that the shim was asked for."""
    lines = map(json.loads, (world.root / "c1/requests").read_text().splitlines())
    fields = [line for line in lines if line[0] == "exec"][-1]
    assert fields[1] == "c1"
    process: dict[str, Any] = json.loads(fields[4])
    return process


def running(world: World, **changes: Any) -> int:
    pid = world.create(process=PROCESS, **changes)
    assert world("start", "c1").returncode == 0
    return pid


def detached(world: World, *arguments: str) -> int:
    """The pid of the stand-in of an exec that goes on."""
    pid_file = world.tmp / "exec-pid"
    done = world("exec", "--detach", "--pid-file", str(pid_file), "c1", *arguments)
    assert done.returncode == 0, done.stderr
    return int(pid_file.read_text())


def test_output_and_exit_code(world: World) -> None:
    running(world)
    done = world("exec", "c1", "exit", "42")
    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "")
    assert asked(world) == {**PROCESS, "args": ["exit", "42"], "terminal": False}


def test_stdin_comes_to_its_end(world: World) -> None:
    running(world)
    command = world.command("exec", "c1", "cat")
    done = subprocess.run(command, input=b"hello", capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"hello")


def test_what_stands_behind_the_id_is_the_program_s(world: World) -> None:
    running(world)
    world("exec", "c1", "exit", "3", "--help", "-t", "--", "-e", "x")
    assert asked(world)["args"] == ["exit", "3", "--help", "-t", "--", "-e", "x"]


def test_options_change_the_container_s_process(world: World) -> None:
    running(world)
    options = ["--cwd", "/tmp", "-e", "B=2", "--env", "C=3=4", "-u", "1000:1001", "-g", "5,6"]
    options += ["--additional-gids=7", "--cap", "CAP_A", "-c", "CAP_B", "--no-new-privs"]
    options += ["--apparmor", "p", "--process-label", "l"]
    assert world("exec", *options, "c1", "exit", "0").returncode == 0
    sets = ("bounding", "effective", "permitted")
    assert asked(world) == {
        "args": ["exit", "0"],
        "cwd": "/tmp",
        "env": ["A=1", "B=2", "C=3=4"],
        "user": {"uid": 1000, "gid": 1001, "additionalGids": [5, 6, 7]},
        "capabilities": {name: ["CAP_A", "CAP_B"] for name in sets},
        "noNewPrivileges": True,
        "apparmorProfile": "p",
        "selinuxLabel": "l",
        "terminal": False,
    }


def test_a_process_file_goes_to_the_guest_as_it_is(world: World) -> None:
    running(world)
    process = {**PROCESS, "args": ["exit", "5"], "rlimits": [], "apparmorProfile": "x"}
    path = world.tmp / "process.json"
    path.write_text(json.dumps(process))
    assert world("exec", "--process", str(path), "c1").returncode == 5
    assert asked(world) == process


@pytest.mark.parametrize(
    ("process", "text"),
    [
        ({"args": [], "cwd": "/"}, "$.args: expected `array` of length >= 1"),
        ({"args": ["x"]}, "object missing required field `cwd`"),
        ({"args": ["x"], "cwd": "tmp"}, "$.cwd: "),
        ({"args": ["x"], "cwd": "/", "user": {"uid": -1}}, "$.user.uid: "),
        ("nonsense", "expected `object`, got `str`"),
    ],
)
def test_a_process_file_that_is_none(world: World, process: object, text: str) -> None:
    running(world)
    path = world.tmp / "process.json"
    path.write_text(json.dumps(process))
    done = world("exec", "--process", str(path), "c1")
    assert done.returncode == 255
    assert text in done.stderr
    assert not (world.root / "c1/requests").exists()


def test_a_process_that_comes_through_a_pipe(world: World) -> None:
    """As of `--process <(command)`. Nobody waits for one into which nobody writes."""
    running(world)
    path = world.tmp / "process.json"
    os.mkfifo(path)
    done = world("exec", "--process", str(path), "c1")
    assert (done.returncode, done.stderr.count("\n")) == (255, 1)
    assert done.stderr.startswith("sealrun: ")
    reader, writer = os.pipe()

    def write() -> None:
        os.write(writer, json.dumps(PROCESS | {"args": ["exit", "5"]}).encode())
        os.close(writer)

    late = threading.Timer(0.3, write)
    late.start()
    try:
        done = world("exec", "--process", f"/proc/{os.getpid()}/fd/{reader}", "c1")
        assert done.returncode == 5, done.stderr
    finally:
        late.join()
        os.close(reader)


def test_a_missing_program(world: World) -> None:
    """Podman takes 127 from the words, also where the guest tells no more than the kind."""
    running(world)
    done = world("exec", "c1", "nothing")
    text = "the program to run is not in the image: no such file or directory"
    assert (done.returncode, done.stderr) == (127, f"sealrun: {text}\n")
    assert world.error() == text
    wait_for_stand_ins(world, 1)


def test_a_program_that_is_not_run_leaves_nobody_to_be_reaped(world: World) -> None:
    """The first process of a namespace inherits its orphans, and the container's stand-in reaps none."""
    first = running(world)
    for _ in range(3):
        assert world("exec", "c1", "nothing").returncode == 127
    assert oci.descendants(first) == []


def test_an_exec_of_an_engine_with_many_open_files(world: World) -> None:
    """Engines leak descriptors into what they call: those of a shim or a stand-in then have high numbers."""
    running(world)
    with descriptors.many_open() as opened:
        assert world("exec", "c1", "nothing", pass_fds=opened).returncode == 127
    wait_for_stand_ins(world, 1)


def wait_for_stand_ins(world: World, count: int) -> None:
    """Until there are so many, containers' and execs'; those that are ending need a moment."""
    deadline = time.monotonic() + SECONDS
    while True:
        found = [one for one in world.ours() if one.startswith("sealrun-stand-in")]
        if len(found) == count:
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def test_states_that_do_not_allow_it(world: World) -> None:
    done = world("exec", "c1", "exit", "0")
    assert (done.returncode, done.stderr) == (255, 'sealrun: container "c1" does not exist\n')
    world.create(process=PROCESS)
    assert world("exec", "c1", "exit", "3").returncode == 3
    world("start", "c1")
    world("pause", "c1")
    text = "cannot exec in a paused container"
    assert world("exec", "c1", "exit", "0").stderr == f"sealrun: {text}\n"
    world("resume", "c1")
    world("kill", "c1", "9")
    world.wait_for("stopped")
    text = "cannot exec in a stopped container"
    assert world("exec", "c1", "exit", "0").stderr == f"sealrun: {text}\n"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--preserve-fds", "1"], "file descriptors cannot be passed into the guest"),
        (["--cgroup", "x"], "--cgroup is not supported: the container's cgroups are the guest's"),
        (["--user", "bob"], "option --user takes numbers, not 'bob'; see sealrun exec --help"),
        (["--cwd", "tmp"], "$.cwd: it is not an absolute path"),
        (
            ["--tty", "--detach"],
            "cannot allocate tty if sealrun will detach without setting console socket",
        ),
        (
            ["--detach", "--console-socket", "/x"],
            "cannot use console socket if sealrun will not detach or allocate tty",
        ),
    ],
)
def test_refusals(world: World, options: list[str], text: str) -> None:
    running(world)
    done = world("exec", *options, "c1", "exit", "0")
    assert (done.returncode, done.stderr) == (255, f"sealrun: {text}\n")


def test_a_command_is_needed(world: World) -> None:
    running(world)
    assert world("exec", "c1").stderr == "sealrun: exec needs a command; see sealrun exec --help\n"
    assert world("exec").stderr == "sealrun: exec needs a container id; see sealrun exec --help\n"
    assert world("exec", "--help").stdout.startswith("usage: sealrun exec [--detach] [--tty]")


def test_a_request_that_is_too_large(world: World) -> None:
    running(world)
    done = world("exec", "--env", "A=" + "x" * 100_000, "--env", "B=" + "x" * 100_000, "c1", "exit")
    assert done.returncode == 255
    assert "cannot exec: the request is larger than" in done.stderr
    wait_for_stand_ins(world, 1)


def test_the_stand_in_of_an_exec(world: World) -> None:
    first = running(world)
    pid = detached(world, "report")
    for kind in ("pid", "ipc", "uts", "net"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/{first}/ns/{kind}")
    assert os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    assert os.stat(f"/proc/{pid}/root/").st_ino == os.stat(f"/proc/{first}/root/").st_ino
    assert os.getsid(pid) == pid
    descriptors = {os.readlink(f"/proc/{pid}/fd/{one}") for one in os.listdir(f"/proc/{pid}/fd")}
    assert len(descriptors) == 1
    assert descriptors.pop().startswith("socket:")
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = [int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")]
    assert sum(private) < 1024  # KiB


def test_signals_to_the_stand_in_are_passed_on(world: World) -> None:
    """containerd and conmon signal the pid of an exec directly."""
    running(world)
    with open(world.tmp / "report", "w") as out:
        pid_file = world.tmp / "exec-pid"
        command = world.command("exec", "-d", "--pid-file", str(pid_file), "c1", "report")
        subprocess.run(command, stdout=out, check=True, timeout=60)
    pid = int(pid_file.read_text())
    numbers = [1, 2, 3, 10, 12, 14, 18, 28, 34, 64, 20, 21, 22, 11, 6]
    lines = ["begin 0x0"]
    for number in numbers:
        os.kill(pid, number)
        lines.append(f"signal {number} 0x0")
        wait_for_lines(world.tmp / "report", lines)
    os.kill(pid, signal.SIGPIPE)  # has no meaning for a stand-in
    os.kill(pid, signal.SIGTERM)
    wait_for_lines(world.tmp / "report", [*lines, "signal 15 0x0"])


def wait_for_lines(path: Path, lines: list[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while path.read_text().splitlines() != lines:
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.005)


def test_no_signal_is_lost(world: World) -> None:
    running(world)
    with open(world.tmp / "report", "w") as out:
        pid_file = world.tmp / "exec-pid"
        command = world.command("exec", "-d", "--pid-file", str(pid_file), "c1", "report")
        subprocess.run(command, stdout=out, check=True, timeout=60)
    pid = int(pid_file.read_text())
    sent = 1
    for turn in range(400):
        number = (1, 2, 3, 10, 12)[turn % 5]
        os.kill(pid, number)
        sent += 1
        deadline = time.monotonic() + SECONDS
        while (world.tmp / "report").read_text().count("\n") < sent:
            assert time.monotonic() < deadline, f"signal {turn} was lost"
        time.sleep(turn % 7 * 20e-6)


def test_a_killed_stand_in_leaves_nothing(world: World) -> None:
    running(world)
    pid = detached(world, "report")
    wait_for_stand_ins(world, 2)
    os.kill(pid, signal.SIGKILL)
    wait_for_stand_ins(world, 1)
    assert world("exec", "c1", "exit", "0").returncode == 0


def test_the_exit_code_reaches_whoever_inherits_the_stand_in(world: World) -> None:
    """conmon is a subreaper: it inherits the stand-in, and takes its exit status."""
    running(world)
    script = (
        "import ctypes, os, subprocess, sys\n"
        "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
        "command, pid_file = eval(sys.argv[1])\n"
        "subprocess.run(command, check=True)\n"
        "pid = int(open(pid_file).read())\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    pid_file = str(world.tmp / "exec-pid")
    command = world.command("exec", "--detach", "--pid-file", pid_file, "c1", "exit", "77")
    done = subprocess.run(
        ["python3", "-c", script, repr((command, pid_file))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "out\n77\n", done.stderr


def test_the_end_of_the_container_is_the_end_of_its_execs(world: World) -> None:
    running(world)
    pids = [detached(world, "report") for _ in range(3)]
    world("kill", "c1", "9")
    world.wait_for("stopped")
    deadline = time.monotonic() + SECONDS
    while any(os.path.exists(f"/proc/{pid}/root") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert world("delete", "c1").returncode == 0
    world.assert_nothing_left()


def test_the_end_of_the_shim_is_the_end_of_execs_without_a_pid_namespace(world: World) -> None:
    running(world, linux={"namespaces": [{"type": "mount"}, {"type": "network"}]})
    pid = detached(world, "report")
    assert os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    os.kill(world.processes()["shim"], signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while os.path.exists(f"/proc/{pid}/root"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert world("delete", "--force", "c1").returncode == 0
    world.assert_nothing_left()


def test_a_foreground_exec_forwards_signals(world: World) -> None:
    running(world)
    command = world.command("exec", "c1", "report")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin 0x0\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "signal 10 0x0\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "signal 15 0x0\n"
        assert process.wait(timeout=20) == 143


def test_many_at_once(world: World) -> None:
    running(world)
    codes: dict[int, int] = {}

    def one(number: int) -> None:
        command = world.command("exec", "c1", "exit", str(number))
        codes[number] = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60
        ).returncode

    threads = [threading.Thread(target=one, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {number: number for number in range(24)}
