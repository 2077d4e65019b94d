"""Who makes control groups: what the command line takes, and what it refuses before anything is made."""

import pytest
from fixtures.cli import World


def refused(world: World, *options: str, path: str = "", **changes: object) -> str:
    linux = {
        "namespaces": [{"type": one} for one in ("pid", "network", "ipc", "uts", "mount")],
        **({"cgroupsPath": path} if path else {}),
    }
    done = world(*options, "create", "--bundle", world.bundle(linux=linux, **changes), "c1")
    assert done.returncode != 0
    world.assert_nothing_left()
    return done.stderr


def test_a_scope_where_systemd_does_not_run(world: World) -> None:
    """There is no falling back: a limit of the slice that nobody made would hold nobody."""
    for options in (("--systemd-cgroup",), ("--cgroup-manager", "systemd")):
        said = refused(world, *options, path="machine.slice:libpod:1f")
        assert "systemd does not run on this machine" in said
        assert "--cgroup-manager cgroupfs" in said


def test_a_scope_that_nobody_asked_systemd_for(world: World) -> None:
    said = refused(world, path="machine.slice:libpod:1f")
    assert "$.linux.cgroupsPath" in said
    assert "--systemd-cgroup" in said


@pytest.mark.parametrize(
    "path",
    [
        "/a/b",
        "a.slice:b:c/../../d",
        "-a.slice:b:c",
        "a--b.slice:c:d",
        "a.slice:b:c.slice",
        "a:b:c",
        "a.slice:b:c d",
    ],
)
def test_a_path_that_is_no_scope(world: World, path: str) -> None:
    assert "$.linux.cgroupsPath" in refused(world, "--systemd-cgroup", path=path)


def test_an_annotation_that_is_no_property(world: World) -> None:
    for name, text in (("Slice", "'a.slice'"), ("CollectMode", "inactive"), ("PIDs", "@au [1]")):
        annotations = {f"org.systemd.property.{name}": text}
        said = refused(world, "--systemd-cgroup", path="a.slice:b:c", annotations=annotations)
        assert f"org.systemd.property.{name}" in said


def test_a_manager_that_there_is_not(world: World) -> None:
    assert "invalid cgroup manager x" in refused(world, "--cgroup-manager=x")


def test_disabled_is_none(world: World) -> None:
    linux = {
        "namespaces": [{"type": one} for one in ("pid", "network", "ipc", "uts", "mount")],
        "cgroupsPath": "machine.slice:libpod:1f",
    }
    done = world("--cgroup-manager=disabled", "create", "--bundle", world.bundle(linux=linux), "c1")
    assert done.returncode == 0, done.stderr
