"""The command line is killed, or told to end, at each of its system calls from its first trace in the
state root on: what is left is what `delete --force` removes, and then the same id is free again.

Each sweep uses one id all the time, so that every call is also the new `create` or `delete` after the
one that was struck before.
"""

import signal
from collections.abc import Iterator

import pytest
from fixtures.cli import World
from fixtures.remains import Remains
from fixtures.tracing import Ended, Strike

pytestmark = pytest.mark.root

MANY = 1000  # more calls than there are
ALSO_BETWEEN = frozenset({"other", "read", "newfstatat"})  # a signal makes a difference at others


@pytest.fixture
def remains(world: World) -> Iterator[Remains]:
    with Remains(world.root) as remains:
        yield remains


def test_create_is_killed(world: World, remains: Remains) -> None:
    strike, struck = Strike(is_the_first(world), signal.SIGKILL), []
    for ordinal in range(MANY):
        ended = strike.run(create(world), ordinal)
        if ended.call is None:
            break
        struck.append(ended.call)
        assert ended.status == -signal.SIGKILL
        forced_away(world, remains, ended)
    assert ended.status == 0
    assert world.state()["status"] == "created"
    names = {call.name for call in struck}
    assert names >= {"mkdir", "openat", "write", "renameat", "bind", "listen", "clone"}
    assert names >= {"wait4", "socketpair", "connect", "sendmsg", "recvfrom", "rename"}
    forced_away(world, remains, ended)


def test_delete_is_killed(world: World, remains: Remains) -> None:
    strike, struck = Strike(is_the_first(world), signal.SIGKILL), []
    for ordinal in range(MANY):
        assert world("create", "-b", world.bundle("helper"), "c1").returncode == 0
        ended = strike.run(world.command("delete", "--force", "c1"), ordinal)
        if ended.call is None:
            break
        struck.append(ended.call)
        assert ended.status == -signal.SIGKILL
        forced_away(world, remains, ended)
    assert ended.status == 0
    assert remains.all() == []
    names = {call.name for call in struck}
    assert names >= {"openat", "connect", "sendmsg", "recvfrom", "pidfd_open", "pidfd_send_signal"}
    assert names >= {"unlinkat", "rmdir"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_create_is_interrupted(world: World, remains: Remains, number: signal.Signals) -> None:
    """It undoes by itself what it made, also for the impatient (SIGINT here: again and again); or it
    was done already, and says so."""
    times, step = (1, 1) if number == signal.SIGTERM else (10, 3)
    strike = Strike(is_the_first(world), number, passed_over=ALSO_BETWEEN, times=times)
    undone = 0
    for ordinal in range(0, MANY, step):
        ended = strike.run(create(world), ordinal)
        if ended.call is None:
            break
        if ended.status == 1:
            undone += 1
            assert remains.all() == [], ended
        else:
            assert ended.status == 0, ended
            assert world.state()["status"] == "created"
        forced_away(world, remains, ended)
    assert ended.status == 0
    assert undone > 40 / step
    forced_away(world, remains, ended)


def create(world: World) -> list[str]:
    bundle = world.bundle("helper")
    return world.command("create", "-b", bundle, "--pid-file", str(world.tmp / "pid"), "c1")


def is_the_first(world: World):
    directory = str(world.root / "c1")
    return lambda call: call.path == directory


def forced_away(world: World, remains: Remains, ended: Ended) -> None:
    done = world("delete", "--force", "c1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), ended
    assert remains.all() == [], ended
