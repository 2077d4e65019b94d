"""What is refused, in which words, and that nothing was made."""

import os
import subprocess
from pathlib import Path

import pytest
from fixtures.cli import World

pytestmark = pytest.mark.root

WHAT_THE_GUEST_TAKES = "the guest takes 128 characters, of which the first is no dash"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--nonsense"], "unknown option --nonsense; see sealrun --help"),
        (["create", "--nonsense", "c1"], "unknown option --nonsense; see sealrun create --help"),
        (["state"], "state needs a container id; see sealrun state --help"),
        (
            ["state", "../c1"],
            "invalid container id '../c1'; it has 1 to 1024 letters, digits and the characters _ + - .",
        ),
        (["create", "--", "-x"], f"invalid container id '-x': {WHAT_THE_GUEST_TAKES}"),
        (["create", "0" * 129], f"invalid container id '{'0' * 80}': {WHAT_THE_GUEST_TAKES}"),
        (["state", "c1"], 'container "c1" does not exist'),
        (["start", "c1"], 'container "c1" does not exist'),
        (["kill", "c1", "9"], 'container "c1" does not exist'),
        (["kill", "c1", "LUNCH"], "unknown signal LUNCH; see sealrun kill --help"),
        (
            ["create", "--bundle", "/nowhere", "c1"],
            "cannot read /nowhere/config.json: it does not exist",
        ),
        (
            ["create", "--preserve-fds", "2", "c1"],
            "file descriptors cannot be passed into the guest",
        ),
        (["nonsense"], "unknown command nonsense; see sealrun --help"),
        *(
            (
                [verb, argument],
                f"{verb} is not supported: what is in a sealed VM cannot be taken out of it",
            )
            for verb in ("checkpoint", "restore")
            for argument in ("--help", "c1")
        ),
        *(
            ([verb, "c1"], 'container "c1" does not exist')
            for verb in ("ps", "pause", "resume", "update", "events")
        ),
        (["ps"], "ps needs a container id; see sealrun ps --help"),
        (
            ["ps", "--format", "xml", "c1"],
            "invalid format xml: it is table or json; see sealrun ps --help",
        ),
        (["update", "--memory", "1x", "c1"], 'container "c1" does not exist'),
        (
            ["update", "--l3-cache-schema", "x", "c1"],
            "option --l3-cache-schema is not supported: a guest has no such limit",
        ),
        (
            ["events", "--interval", "soon", "c1"],
            "option --interval takes a duration such as 5s, not soon; see sealrun events --help",
        ),
        (
            ["events", "--interval", "0s", "c1"],
            "duration interval must be greater than 0; see sealrun events --help",
        ),
    ],
)
def test_refusals(world: World, arguments: list[str], text: str) -> None:
    done = world(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"sealrun: {text}\n")
    if "--nonsense" not in arguments[:1]:
        assert world.error() == text
    assert os.listdir(world.root) == []


def test_the_log_in_text_form(world: World) -> None:
    subprocess.run(world.command("state", "c1", form="text"), timeout=60)
    assert world.log.read_text().endswith('level=error msg="container \\"c1\\" does not exist"\n')


def test_whose_the_terminal_is_has_to_be_clear(world: World) -> None:
    process = {"args": ["sh"], "cwd": "/", "terminal": True}
    bundle = world.bundle(process=process)
    need = "cannot allocate tty if sealrun will detach without setting console socket"
    for verb in (["create"], ["run", "--detach"]):
        done = world(*verb, "-b", bundle, "c1")
        assert (done.returncode, done.stderr) == (1, f"sealrun: {need}\n")
    refuse = "cannot use console socket if sealrun will not detach or allocate tty"
    done = world("run", "-b", bundle, "--console-socket", "/x", "c1")
    assert (done.returncode, done.stderr) == (1, f"sealrun: {refuse}\n")
    done = world("create", "-b", world.bundle(), "--console-socket", "/x", "c1")
    assert (done.returncode, done.stderr) == (1, f"sealrun: {refuse}\n")
    assert os.listdir(world.root) == []


def test_a_device_that_a_vm_cannot_have(world: World) -> None:
    kvm = {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}
    bundle = world.bundle(linux={"namespaces": [{"type": "network"}], "devices": [kvm]})
    done = world("create", "-b", bundle, "c1")
    text = (
        f"cannot read {bundle}/config.json: $.linux.devices[0]: /dev/kvm: a VM cannot have the character "
        "device 10:232 of the host; do without it: the VM's own are null, zero, full, random, urandom and "
        "tty, and block devices can be its disks"
    )
    assert (done.returncode, done.stderr) == (1, f"sealrun: {text}\n")
    assert not world.root.exists() or os.listdir(world.root) == []


NOBODY = 65534


def test_a_state_root_in_which_others_can_put_things(world: World) -> None:
    """Of a directory that lies there a verb would believe which processes are the container's."""
    for owner, mode, why in (
        (NOBODY, 0o711, f"it belongs to user {NOBODY}; run as that user, or remove it"),
        (0, 0o1777, "others may write there (mode 1777); remove it, or look at what it holds"),
        (0, 0o731, "others may write there (mode 0731); remove it, or look at what it holds"),
    ):
        os.chown(world.root, owner, 0)
        world.root.chmod(mode)
        done = world("create", "-b", world.bundle(), "c1")
        assert done.returncode == 1
        assert done.stderr.startswith(f"sealrun: cannot trust {world.root}: {why}"), done.stderr
        assert os.listdir(world.root) == []


def test_a_container_s_directory_that_somebody_else_made(world: World) -> None:
    with subprocess.Popen(["sleep", "1000"]) as victim:
        planted = world.root / "c1"
        planted.mkdir(parents=True)
        started = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()[19]
        (planted / "processes").write_text(f"vmm {victim.pid} {started}\n")
        (planted / "state.json").write_text('{"status":"running","pid":1}')
        for owner, mode, why in (
            (NOBODY, 0o700, f"it belongs to user {NOBODY}"),
            (0, 0o777, "others may write there (mode 0777)"),
        ):
            os.chown(planted, owner, owner)
            planted.chmod(mode)
            for words in (["state", "c1"], ["kill", "c1"], ["delete", "--force", "c1"], ["list"]):
                done = world(*words)
                assert (done.returncode, done.stdout) == (1, "")
                assert done.stderr.startswith(f"sealrun: cannot trust {planted}: {why}")
        assert victim.poll() is None
        planted.chmod(0o700)
        assert world("delete", "--force", "c1").returncode == 0
        assert victim.wait(timeout=20) == -9  # what is its owner's is believed


def test_an_id_that_is_taken(world: World) -> None:
    world.create()
    done = world("create", "-b", world.bundle(), "c1")
    assert done.stderr == "sealrun: container with id exists: c1\n"
    assert world.state()["status"] == "created"


def test_what_a_state_does_not_allow(world: World) -> None:
    world.create()
    assert world("start", "c1").returncode == 0
    assert "cannot start an already running container" in world("start", "c1").stderr
    done = world("delete", "c1")
    assert done.returncode == 1
    assert "cannot delete container c1 that is not stopped: running; use --force" in done.stderr
    world("kill", "c1", "9")
    world.wait_for("stopped")
    assert world("kill", "c1", "9").stderr == "sealrun: container not running\n"
    assert world("kill", "--all", "c1", "9").returncode == 0
    assert "cannot start a container that has stopped" in world("start", "c1").stderr
    assert world("delete", "c1").returncode == 0


def test_delete_of_an_unknown_id_is_done_already(world: World) -> None:
    for arguments in (["delete", "c1"], ["delete", "--force", "c1"]):
        done = world(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
