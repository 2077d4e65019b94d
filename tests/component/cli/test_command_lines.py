"""Command lines that are wrong: an error for runc too, and of ours one line that names what is wrong and
says what to do. None of them makes anything.
"""

import os
import subprocess
from pathlib import Path

import pytest
from fixtures import oci
from fixtures.cli import World

pytestmark = pytest.mark.root

# What is given; what the line names; the page of help that it leads to, or another remedy.
WRONG: list[tuple[list[str], str, str]] = [
    (["lunch"], "unknown command lunch", "see sealrun --help"),
    (["help", "lunch"], "unknown command lunch", "see sealrun --help"),
    (["--lunch", "state", "c1"], "unknown option --lunch", "see sealrun --help"),
    (["--root"], "option --root needs a value", "see sealrun --help"),
    (["--log-format", "lunch", "list"], "invalid log format lunch", "it is text or json"),
    *(
        (["--log", path, *verb], f"cannot open the log {path}: {cause}", "--log takes a file")
        for path, cause in (("/missing/log", "it does not exist"), ("/", "is a directory"))
        for verb in (["list"], ["lunch"], ["delete", "--force", "c1"])
    ),
    *(
        ([verb], f"{verb} needs a container id", f"see sealrun {verb} --help")
        for verb in (
            *("create", "start", "state", "kill", "delete", "run", "exec"),
            *("ps", "pause", "resume", "update", "events"),
        )
    ),
    *(
        ([verb, "--lunch", "c1"], "unknown option --lunch", f"see sealrun {verb} --help")
        for verb in (
            *("create", "start", "state", "kill", "delete", "run", "exec", "list", "spec"),
            *("ps", "pause", "resume", "update", "events", "features"),
        )
    ),
    *(
        ([verb, "c1", "more"], "unexpected operand more", f"see sealrun {verb} --help")
        for verb in (
            *("create", "start", "state", "delete", "run"),
            *("pause", "resume", "update", "events"),
        )
    ),
    *(
        ([verb, "more"], "unexpected operand more", f"see sealrun {verb} --help")
        for verb in ("list", "spec", "features")
    ),
    (["kill", "c1", "TERM", "more"], "unexpected operand more", "see sealrun kill --help"),
    (["kill", "--all"], "kill needs a container id", "see sealrun kill --help"),
    (["kill", "c1", "LUNCH"], "unknown signal LUNCH", "see sealrun kill --help"),
    (["kill", "c1", "99"], "unknown signal 99", "see sealrun kill --help"),
    (["list", "--format", "lunch"], "invalid format lunch", "it is table or json"),
    (["ps", "--format", "lunch", "c1"], "invalid format lunch", "it is table or json"),
    (["create", "--bundle"], "option --bundle needs a value", "see sealrun create --help"),
    (["create", "c1", "--pid-file"], "option --pid-file needs a value", "see sealrun create"),
    (["delete", "--force=lunch", "c1"], "option --force=lunch takes true or false", "see sealrun"),
    (["exec", "--preserve-fds", "x", "c1", "true"], "takes a number, not x", "see sealrun exec"),
    (["events", "--interval", "lunch", "c1"], "duration such as 5s, not lunch", "see sealrun"),
    (["checkpoint", "c1"], "checkpoint is not supported", "cannot be taken out of it"),
    (["restore", "c1"], "restore is not supported", "cannot be taken out of it"),
    *(
        ([verb, container], f"invalid container id {container!r}", "letters, digits and the char")
        for verb in ("state", "start", "create")
        for container in ("..", "../c1", "a/b", "a b", "", "é", "a\nb", "a\x1b[1m")
    ),
]
IDS = [" ".join(arguments).encode("unicode_escape").decode() for arguments, *_ in WRONG]


@pytest.mark.parametrize(("arguments", "named", "remedy"), WRONG, ids=IDS)
def test_wrong_for_runc_too(
    world: World, tmp_path: Path, arguments: list[str], named: str, remedy: str
) -> None:
    for name in ("theirs", "ours"):  # without a config.json, where a bundle is looked for
        (tmp_path / name).mkdir()
    runc = oci.oracle("runc", tmp_path)
    command = [runc.binary, "--root", str(runc.root), *arguments]
    oracle = subprocess.run(command, capture_output=True, timeout=60, cwd=tmp_path / "theirs")
    assert oracle.returncode != 0, oracle.stdout

    done = world(*arguments, cwd=tmp_path / "ours")
    assert done.returncode == (255 if arguments[0] == "exec" else 1)
    assert done.stdout == ""
    assert done.stderr.startswith("sealrun: ")
    assert done.stderr.isascii() or "é" in arguments
    (line,) = done.stderr.splitlines()
    assert named in line
    assert remedy in line
    assert os.listdir(tmp_path / "ours") == []
    assert os.listdir(world.root) == []


def test_a_log_that_nobody_reads_keeps_nobody_waiting(world: World, tmp_path: Path) -> None:
    """runc waits for a reader for ever."""
    os.mkfifo(tmp_path / "pipe")
    done = world("--log", str(tmp_path / "pipe"), "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"sealrun: cannot open the log {tmp_path}/pipe: ")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert world("--log", str(tmp_path / "pipe"), "state", "c1").returncode == 1
        assert b'container \\"c1\\" does not exist' in os.read(reader, 4096)
    finally:
        os.close(reader)


def test_a_full_disk_under_the_log_keeps_nobody_from_deleting(world: World) -> None:
    """What is not written there is said on stderr."""
    assert world("--log", "/dev/full", "delete", "--force", "c1").returncode == 0
    done = world("--log", "/dev/full", "state", "c1")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "sealrun: cannot write /dev/full: no space left on device",
        'sealrun: container "c1" does not exist',
    ]


@pytest.mark.parametrize("arguments", [["--version"], ["state", "--help"]])
def test_whoever_asks_for_help_needs_no_log(world: World, arguments: list[str]) -> None:
    assert world("--log", "/missing/log", *arguments).returncode == 0
