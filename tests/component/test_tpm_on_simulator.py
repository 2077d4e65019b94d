"""A VM with a TPM by Cloud Hypervisor, which is simulated: its way with the emulator, and the 100 ms that it
waits for an answer. Command line, shim, driver, relay, emulator, agent and container are real.

The same on the real one: test_its_tpm_is_the_guests in tests/system/test_cloud_hypervisor.py.
"""

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import oci, simulated
from simulators import simulated_guest
from system.test_vm_life import SETTINGS

pytestmark = [pytest.mark.root, pytest.mark.tpm]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("prefix")
    settings = f'tee = "tpm"\n{SETTINGS}tpm_state = "{directory}/seeds"\n'
    simulated.install(directory, settings=settings)
    return directory


@pytest.fixture
def runtime(prefix: Path, tmp_path: Path) -> Iterator[oci.Runtime]:
    runtime = oci.Runtime(
        "sealrun",
        str(prefix / "bin/sealrun"),
        tmp_path / "root",
        {"io.sealrun.image": simulated.IMAGE},
    )
    yield runtime
    runtime.clean()
    simulated_guest.remove_cgroups()


@pytest.fixture
def sandbox(runtime: oci.Runtime, tmp_path: Path) -> simulated.Sandbox:
    """One that was created."""
    bundle = simulated.bundle(tmp_path / "bundle", "sleep 1000", runtime.annotations)
    created = runtime.create(bundle, "c1")
    assert created.ok, created.stderr
    return simulated.Sandbox(runtime.root / "c1")


def test_the_guest_quotes_what_was_booted(
    runtime: oci.Runtime, sandbox: simulated.Sandbox, tmp_path: Path
) -> None:
    state = runtime.state("c1")
    assert state is not None
    assert state["annotations"]["io.sealrun.tee"] == "tpm"
    file = tmp_path / "evidence.json"
    done = runtime("attest", "--no-verify", "--output", str(file), "c1")
    assert done.ok, done.stderr
    (quoted,) = find(json.loads(file.read_text()), "pcrs")
    machine = ("--driver", "cloud-hypervisor", "--accelerator", "kvm")
    measured = json.loads(runtime("measure", *machine, "--format", "broker").stdout)
    expected = {int(name.removeprefix("tpm_pcr")): value for name, value in measured.items()}
    assert set(expected) == {0, 1, 2, 3, 4, 5, 6, 7, 9}
    assert {number: [quoted[number]] for number in expected} == expected
    assert {number for number in expected if quoted[number] != "0" * 64} == {4, 9}


def find(document: Any, name: str) -> Iterator[Any]:
    """Every member of that name, however deep."""
    if isinstance(document, dict):
        yield from (value for member, value in document.items() if member == name)
        for value in document.values():
            yield from find(value, name)
    elif isinstance(document, list):
        for value in document:
            yield from find(value, name)


def test_the_tpm_ends_with_the_sandbox(runtime: oci.Runtime, sandbox: simulated.Sandbox) -> None:
    emulator = sandbox.pid("swtpm")
    assert runtime("delete", "--force", "c1").ok
    with pytest.raises(ProcessLookupError):
        os.kill(emulator, 0)


def test_a_sandbox_without_its_tpm_is_ended(
    runtime: oci.Runtime, sandbox: simulated.Sandbox
) -> None:
    sandbox.kill("swtpm", signal.SIGKILL)
    state = runtime.wait_for("c1", "stopped")
    assert "the VM's TPM emulator ended" in state["annotations"]["io.sealrun.exit-reason"]


EMULATOR = """#!/usr/bin/python3
# A TPM emulator that fails at a command of its control channel, once it was made and says what it is.
import os, socket, sys, time
if "--print-capabilities" in sys.argv or "startup-clear" in sys.argv:
    os.execvp("swtpm", ["swtpm", *sys.argv[1:]])
channel = socket.socket(fileno=int(sys.argv[sys.argv.index("--ctrl") + 1].rpartition("=")[2]))
kept = []
for _ in range({answers}):
    command, given, _, _ = socket.recv_fds(channel, 64, 1)
    kept += given
    channel.sendall(bytes(8 if command[3] == 1 else 4))
print("tpm: all randomness is used up", file=sys.stderr, flush=True)
if {hangs}:
    time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("answers", "hangs"), [(0, False), (3, False), (4, False), (0, True), (4, True)]
)
def test_an_emulator_that_fails_at_the_launch(
    runtime: oci.Runtime, prefix: Path, tmp_path: Path, answers: int, hangs: bool
) -> None:
    """Whoever asked reads what it was, and its last words, in time; nothing is left. The shim has three
    questions, the next is the VMM's."""
    annotations = runtime.annotations | ({"test.tpm-seconds": "5"} if hangs else {})
    bundle = simulated.bundle(tmp_path / "bundle", "true", annotations)
    text = EMULATOR.format(answers=answers, hangs=hangs)
    with emulator(prefix, text) as program:
        created = runtime.create(bundle, "c1")
    assert not created.ok
    how = "did not answer within 5 s" if hangs else "ended"
    told = f"cannot boot the VM: the VM's TPM emulator {how}: tpm: all randomness is used up"
    assert told in created.stderr
    assert not (runtime.root / "c1").exists()
    assert not [line for line in running() if program in line]


def test_an_emulator_that_only_root_could_start(
    runtime: oci.Runtime, prefix: Path, tmp_path: Path
) -> None:
    bundle = simulated.bundle(tmp_path / "bundle", "true", runtime.annotations)
    with emulator(prefix, EMULATOR.format(answers=0, hangs=False), mode=0o700) as program:
        created = runtime.create(bundle, "c1")
    assert f"cannot start {program}: " in created.stderr
    assert "it runs as the user nobody" in created.stderr
    assert not (runtime.root / "c1").exists()


@contextlib.contextmanager
def emulator(prefix: Path, text: str, mode: int = 0o755) -> Iterator[str]:
    """The program `text` is the TPM emulator of the settings, in a directory that everybody can enter."""
    settings = prefix / "share/sealrun/sealrun.toml"
    before = settings.read_text()
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        program = Path(directory, "swtpm")
        program.write_text(text)
        program.chmod(mode)
        settings.write_text(f'{before}swtpm = "{program}"\n')
        try:
            yield str(program)
        finally:
            settings.write_text(before)


def running() -> list[str]:
    """The command lines of all processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
    return lines
