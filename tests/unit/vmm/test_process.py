"""A VMM process: what it inherits, how its end is noticed, and that it never outlives its parent.

Plain programs (sh, sleep) are the VMM here: what is tested is the watch over a process."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sealrun_vmm import process
from sealrun_vmm.errors import LaunchFailed
from sealrun_vmm.log import DROPPED, LIMIT_BYTES

ROOTS = os.pathsep.join(sys.path)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def spawn(directory: Path, *command: str, descriptors: tuple[int, ...] = ()) -> process.VmmProcess:
    return process.spawn(
        command, str(directory), output="console.log", errors="vmm.log", descriptors=descriptors
    )


def run(directory: Path, *command: str, descriptors: tuple[int, ...] = ()) -> int:
    async def main() -> int:
        return await spawn(directory, *command, descriptors=descriptors).wait()

    return asyncio.run(main())


def test_the_exit_status(tmp_path: Path) -> None:
    assert run(tmp_path, "/bin/sh", "-c", "exit 7") == 7


def test_a_signal(tmp_path: Path) -> None:
    assert run(tmp_path, "/bin/sh", "-c", "kill -SEGV $$") == -signal.SIGSEGV


def test_its_surroundings(tmp_path: Path) -> None:
    script = "pwd; cat; echo /proc/self/fd/*; ps -o sid= $$; echo $$; ulimit -c"
    own = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(own, True)
    try:
        run(tmp_path, "/bin/sh", "-c", script)
    finally:
        os.close(own)
    lines = (tmp_path / "console.log").read_text().splitlines()
    directory, descriptors, session, pid, core = lines
    assert core == "0", "a VM's memory never comes to a disk"
    assert directory == str(tmp_path)
    numbers = [int(path.rpartition("/")[2]) for path in descriptors.split()]
    assert numbers == [0, 1, 2, 3]  # 3 is the shell's own look at the directory
    assert session.strip() == pid
    assert (tmp_path / "console.log").stat().st_mode & 0o777 == 0o600


def test_both_outputs_are_complete_when_the_end_is_reported(tmp_path: Path) -> None:
    run(tmp_path, "/bin/sh", "-c", "seq 1 20000; echo last words >&2")
    assert (tmp_path / "console.log").read_text().split() == [str(n) for n in range(1, 20001)]
    assert (tmp_path / "vmm.log").read_text() == "last words\n"


def test_a_flood_does_not_fill_the_host(tmp_path: Path) -> None:
    run(tmp_path, "/bin/sh", "-c", "seq 1 1000000; echo the end")
    log = (tmp_path / "console.log").read_bytes()
    assert len(log) <= LIMIT_BYTES
    assert log.startswith(DROPPED)
    assert log.endswith(b"\n999999\n1000000\nthe end\n")
    lines = log.splitlines()[1:-1]
    assert lines == [b"%d" % number for number in range(int(lines[0]), 1000001)]


def test_a_log_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "vmm.log").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LaunchFailed, match="cannot start /bin/true: Is a directory"):
        run(tmp_path, "/bin/true")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_descriptor_that_is_given(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        assert not run(
            tmp_path, "/bin/sh", "-c", f"echo here >/proc/self/fd/{writer}", descriptors=(writer,)
        )
        assert os.read(reader, 100) == b"here\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LaunchFailed, match="cannot start /nowhere/qemu: No such file or directory"):
        run(tmp_path, "/nowhere/qemu")


def test_kill_is_idempotent_and_the_end_is_noticed_at_once(tmp_path: Path) -> None:
    async def main() -> tuple[int, float]:
        running = spawn(tmp_path, "/bin/sleep", "60")
        waiters = [asyncio.create_task(running.wait()) for _ in range(3)]
        await asyncio.sleep(0.05)
        started = time.monotonic()
        os.kill(running.pid, signal.SIGKILL)
        statuses = set(await asyncio.gather(*waiters))
        seconds = time.monotonic() - started
        await running.kill()
        await running.kill()
        assert len(statuses) == 1
        return statuses.pop(), seconds

    status, seconds = asyncio.run(main())
    assert status == -signal.SIGKILL
    assert seconds < 5  # no polling: a loaded machine needs a moment, a poll would need seconds


def test_a_cancelled_wait_leaves_the_others(tmp_path: Path) -> None:
    async def main() -> int:
        running = spawn(tmp_path, "/bin/sleep", "0.3")
        first = asyncio.create_task(running.wait())
        await asyncio.sleep(0.01)
        first.cancel()
        return await running.wait()

    assert asyncio.run(main()) == 0


def test_it_becomes_known_before_it_is_the_program(tmp_path: Path) -> None:
    known = tmp_path / "known"

    async def main() -> tuple[int, str]:
        running = process.spawn(
            ["/bin/cat", str(known)],
            str(tmp_path),
            output="out",
            errors="err",
            enlist=lambda: known.write_text(str(os.getpid())) and None,
        )
        await running.wait()
        return running.pid, (tmp_path / "out").read_text()

    pid, said = asyncio.run(main())
    assert said == str(pid)


def test_a_process_that_cannot_become_known_is_none(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    async def main() -> None:
        process.spawn(["/bin/true"], str(tmp_path), output="out", errors="err", enlist=fail)

    with pytest.raises(LaunchFailed, match="cannot start /bin/true: its process cannot be noted"):
        asyncio.run(main())


@AS_ROOT
def test_another_user_is_nobody_here(tmp_path: Path) -> None:
    """It becomes known as the one who started it, and has none of its groups."""
    known = tmp_path / "known"

    async def main() -> str:
        running = process.spawn(
            ["/bin/sh", "-c", "id -u; id -G"],
            str(tmp_path),
            output="out",
            errors="err",
            user=65534,
            enlist=lambda: known.write_text(str(os.getuid())) and None,
        )
        await running.wait()
        return (tmp_path / "out").read_text()

    assert asyncio.run(main()) == "65534\n65534\n"
    assert known.read_text() == "0"


@pytest.mark.parametrize("user", [None, pytest.param(65534, marks=AS_ROOT)])
def test_it_dies_with_its_parent(tmp_path: Path, user: int | None) -> None:
    program = (
        "import asyncio, sys\n"
        "from sealrun_vmm import process\n"
        "async def main():\n"
        f"    running = process.spawn(['/bin/sleep', '60'], {str(tmp_path)!r}, output='o', errors='e', user={user})\n"
        "    print(running.pid, flush=True)\n"
        "    await running.wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ROOTS},
    ) as parent:
        assert parent.stdout is not None
        descriptor = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        poll = process_ended(descriptor, seconds=10)
    finally:
        os.close(descriptor)
    assert poll


def process_ended(descriptor: int, seconds: float) -> bool:
    import select

    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def test_last_words_are_one_harmless_line(tmp_path: Path) -> None:
    log = tmp_path / "vmm.log"
    log.write_bytes(b"first\n\x1b[31mqemu:\tcannot\x00 \xff open" + b"x" * 1000 + b"\n\n  \n")
    words = process.last_line(str(log))
    assert words.startswith("[31mqemu: cannot � openxxx")
    assert len(words) == 300
    assert process.last_line(str(tmp_path / "nothing")) == ""
