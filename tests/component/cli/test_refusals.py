"""What is refused, in which words, and that nothing was made."""

import os
import subprocess

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
