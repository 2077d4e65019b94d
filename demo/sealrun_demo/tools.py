"""Programs that the demonstration runs, each bounded in time."""

import subprocess
from collections.abc import Sequence

from sealrun_demo import telling

SECONDS = 120


def run(
    argv: Sequence[str], *, stdin: bytes = b"", show: bool = True, directory: str | None = None
) -> str:
    """Run a program to its end; its standard output. directory: where, if not here. Raises
    telling.Failed with what it said."""
    if show:
        telling.command(argv)
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, timeout=SECONDS, check=False, cwd=directory
        )
    except FileNotFoundError as error:
        raise telling.Failed(f"cannot run {argv[0]}: it is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise telling.Failed(f"cannot run {argv[0]}: no end after {SECONDS} s") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise telling.Failed(f"cannot run {argv[0]}: exit status {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process that we started, and reap it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
