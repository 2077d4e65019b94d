"""Programs that an operator names by mistake: each is refused with the reason and the remedy, soon, and
nothing of it stays."""

import os
import time
from pathlib import Path

import pytest
from sealrun_vmm import binary
from sealrun_vmm.cloud_hypervisor import program
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.qemu import features
from sealrun_vmm.spec import Accelerator, VmSpec
from sealrun_vmm.tee import tpm

PLAIN = VmSpec(
    name="x", accelerator=Accelerator.TCG, cpus=1, memory_mib=1, kernel="", initrd="", cmdline=""
)
BUSY = 20.0  # what a loaded host may need beyond


def qemu(path: str) -> None:
    features.require(features.find(path), PLAIN)


def cloud_hypervisor(path: str) -> None:
    program.identify(program.find(path))


def swtpm(path: str) -> None:
    tpm.emulator(path)


ASKED = {"vm.qemu": qemu, "vm.cloud_hypervisor": cloud_hypervisor, "vm.swtpm": swtpm}
each = pytest.mark.parametrize("setting", ASKED)


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "program"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def refused(setting: str, path: str) -> str:
    """Why the program `path` is not taken; the remedy names the setting."""
    with pytest.raises(HostUnfit) as caught:
        ASKED[setting](path)
    assert f"set {setting} in sealrun.toml" in caught.value.remedy
    text = str(caught.value)
    assert path in text
    assert text.isprintable()
    assert len(text) < 600
    return text


@each
def test_what_is_no_program(setting: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a program")
    os.mkfifo(tmp_path / "pipe", mode=0o755)
    (tmp_path / "dangling").symlink_to("/nowhere")
    assert "cannot find /nowhere/it" in refused(setting, "/nowhere/it")
    assert refused(setting, str(tmp_path)).endswith(": it is a directory")
    assert refused(setting, str(tmp_path / "text")).endswith(": it is not executable")
    assert refused(setting, str(tmp_path / "pipe")).endswith(": it is no file")
    assert refused(setting, str(tmp_path / "dangling")).endswith(": it is a link to nothing")


@each
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("neither script nor ELF", "Exec format error"),
        ("#!/nowhere\n", "its interpreter or its loader does not exist"),
        ("#!/bin/true\n", "it does not say that it is "),
        ("#!/bin/sh\nexit 1\n", "it ended with status 1 when it was asked what it is"),
        (
            "#!/bin/sh\necho 'a\\033[1m word' >&2; exit 3\n",
            "with status 3 when it was asked what it is: a",
        ),
        ("#!/bin/sh\nkill -9 $$\n", "it ended with signal 9"),
        ("#!/bin/sh\nhead -c 10000 /dev/urandom\n", "it does not say that it is "),
        ("#!/bin/sh\nhead -c 10000000 /dev/zero\n", "it says more than 64 KiB"),
        ("#!/bin/sh\nyes\n", "it says more than 64 KiB"),
    ],
)
def test_a_wrong_program(setting: str, tmp_path: Path, text: str, why: str) -> None:
    started = time.monotonic()
    assert why in refused(setting, script(tmp_path, text))
    assert time.monotonic() - started < BUSY


@each
@pytest.mark.parametrize(
    "text",
    [
        "sleep 1000 & echo $! >>{pids}; wait",  # whose child has its output, too
        "sleep 1000 & echo $! >>{pids}",
        "exec >&- 2>&-; echo $$ >>{pids}; sleep 1000",
        "trap '' TERM HUP INT; echo $$ >>{pids}; while true; do sleep 1; done",
    ],
)
def test_one_that_hangs(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(binary, "SECONDS", 0.3)
    pids = tmp_path / "pids"
    pids.touch()  # on a busy machine the program may not come to say its own in that time
    path = script(tmp_path, f"#!/bin/sh\n{text.format(pids=pids)}\n")
    open_before = len(os.listdir("/proc/self/fd"))
    started = time.monotonic()
    assert refused(setting, path).endswith(": it did not say what it is within 0.3 s")
    assert time.monotonic() - started < BUSY
    while any(lives(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() - started < BUSY, "it was left behind"
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= open_before
    # Once is enough for all that ask.
    monkeypatch.setattr(binary, "SECONDS", 1000.0)
    refused(setting, path)


def lives(pid: int) -> bool:
    """Whether it was not killed; who reaps it is not ours to say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_gets_no_input(tmp_path: Path) -> None:
    path = script(tmp_path, "#!/bin/sh\ncat; echo cloud-hypervisor v54.0.0\n")
    assert program.identify(path).version == "v54.0.0"


def test_it_may_talk_before_it_says_what_it_is(tmp_path: Path) -> None:
    path = script(tmp_path, "#!/bin/sh\necho warning: >&2\necho cloud-hypervisor v54.0.0\n")
    assert program.identify(path).version == "v54.0.0"
