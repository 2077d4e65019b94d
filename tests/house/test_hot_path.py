"""What `state`, `start`, `kill` and `delete` import, by name: each module costs every container
dozens of times in its life, and one careless import costs more than all of the rest (`json` 9 ms,
`typing` 11 ms, `logging` 15 ms over a bare interpreter of 8 ms).

The sets are exact. Who makes one larger says here what for; bench/hot_path.py measures the price.
"""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import source_tree

LAUNCHER = source_tree.ROOT / "runtime/bin/sealrun"

ALWAYS = {
    "errno",
    "sealrun_runtime",
    "sealrun_runtime.arguments",
    "sealrun_runtime.cli",
    "sealrun_runtime.commands",
    "sealrun_runtime.errors",
    "sealrun_runtime.store",
}
ASKS_THE_SHIM = ALWAYS | {"_socket", "sealrun_runtime.client"}
EXPECTED = {
    "state": ASKS_THE_SHIM | {"sealrun_runtime.commands.state"},
    "start": ASKS_THE_SHIM | {"sealrun_runtime.commands.start"},
    "kill": ASKS_THE_SHIM | {"sealrun_runtime.commands.kill"},
    "delete": ASKS_THE_SHIM
    | {"sealrun_runtime.commands.delete", "sealrun_runtime.leftovers", "select"},
}

# Runs the launcher's own code, and says at the end what it imported on top of a bare interpreter.
PROBE = """
import sys
bare = set(sys.modules)
import posix
def report(status):
    # None stands for one that must not be imported.
    loaded = sorted(name for name, module in sys.modules.items() if module and name not in bare)
    posix.write(2, (" ".join([str(status), *loaded]) + "\\n").encode())
    exit(status)
exit, posix._exit = posix._exit, report
path, sys.argv = sys.argv[1], sys.argv[1:]
exec(compile(open(path).read(), path, "exec"), {"__name__": "__main__", "__file__": path})
"""


def run(root: Path, *arguments: str) -> tuple[int, set[str]]:
    """Exit status and modules of one call of the launcher."""
    command = ["/usr/bin/python3", "-ISE", "-c", PROBE, str(LAUNCHER), "--root", str(root)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=30)
    status, *modules = done.stderr.splitlines()[-1].split()
    return int(status), set(modules)


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[None]:
    """A container whose shim answers every request with ok."""
    directory = tmp_path / "c1"
    directory.mkdir()
    state = (
        '{"ociVersion":"1.0.2","id":"c1","status":"running","pid":1,"bundle":"/b","annotations":{}}'
    )
    (directory / "state.json").write_text(state)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(directory / "shim.sock"))
    listener.listen()
    answer = (
        "import socket\n"
        "listener = socket.socket(fileno=0)\n"
        "while True:\n"
        "    connection, _ = listener.accept()\n"
        "    if connection.recv(4096):\n"
        "        connection.send(b'ok')\n"
    )
    with listener:
        process = subprocess.Popen([sys.executable, "-c", answer], stdin=listener)
    yield
    process.kill()
    process.wait()


@pytest.mark.parametrize("verb", EXPECTED)
@pytest.mark.usefixtures("shim")
def test_the_modules_of_a_hot_verb(verb: str, tmp_path: Path) -> None:
    status, modules = run(tmp_path, verb, "c1")
    assert status == 0
    assert modules == EXPECTED[verb]


def test_create_reads_a_bundle_without_what_it_seldom_needs(tmp_path: Path) -> None:
    _, modules = run(tmp_path, "create", "--bundle", str(tmp_path), "c1")
    assert "sealrun_runtime.bundle" in modules
    assert not modules & {"_hashlib", "difflib", "inspect", "subprocess"}


def test_the_probe_sees_what_is_imported(tmp_path: Path) -> None:
    _, modules = run(tmp_path, "list")
    assert {"json", "sealrun_runtime.commands.list"} <= modules
