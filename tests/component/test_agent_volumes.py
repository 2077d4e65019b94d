"""Volumes of the sandbox's own in the real agent, with real crun."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.agent import Host, agent, config
from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.volume import Volume

pytestmark = pytest.mark.root

NAME = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/cache"
PLACE = "/run/sealrun/disk/volumes"
LOOK = "busybox stat -c '%a %u %g' /data; ls /data"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with agent(tmp_path) as host:
        host.configure()
        yield host


def bind(destination: str, *options: str) -> dict[str, Any]:
    """The host's source is never looked at in the guest."""
    return {"destination": destination, "type": "bind", "source": "/etc", "options": [*options]}


def say(host: Host, script: str, container: str, *volumes: Volume, **members: Any) -> str:
    """What a container's script writes, with volumes at /data, /data1, …; it is deleted then."""
    host.output.clear()
    mounts = [bind(f"/data{number or ''}", "rbind") for number in range(len(volumes))]
    given = {number + 2: volume for number, volume in enumerate(volumes)}
    request = config("sh", "-c", f"exec 2>&1; {script}", mounts=members.pop("mounts", mounts))
    assert host.run(container=container, config=request, volumes=given, **members) == 0
    assert isinstance(host.delete(container), messages.Done)
    return host.output.get(4, b"").decode()


def left(host: Host) -> list[str]:
    place = host.guest_path(PLACE)
    return sorted(os.listdir(place)) if place.exists() else []


def test_containers_have_the_same_one_by_its_name_as_long_as_the_sandbox_lives(host: Host) -> None:
    assert say(host, "echo one >/data/file; ls -a /data", "a", Volume(name=NAME)) == ".\n..\nfile\n"
    assert say(host, "cat /data/file", "b", Volume(name=NAME)) == "one\n"
    assert (
        say(host, "cat /data/file; ls /data1", "a", Volume(name=NAME), Volume(name="x")) == "one\n"
    )
    assert say(host, "ls /data", "c", Volume(name=f"{NAME}2")) == ""
    twice = (Volume(name="y"), Volume(name="y"))
    assert say(host, "echo two >/data/file; cat /data1/file", "d", *twice) == "two\n"
    assert len(left(host)) == 4


def test_mode_and_owner_are_those_that_the_first_one_asks_for(host: Host) -> None:
    volume = Volume(name=NAME, mode=0o2775, uid=5, gid=2000)
    assert say(host, LOOK, "a", volume) == "2775 5 2000\n"
    assert say(host, LOOK, "b", Volume(name=NAME)) == "2775 5 2000\n"
    mine = config(
        *("sh", "-c", "echo x >/data/x && echo y >/denied/y; cat /data/x"),
        mounts=[bind("/data", "rbind"), bind("/denied", "rbind")],
        user={"uid": 7, "gid": 7, "additionalGids": [2000]},
    )
    volumes = {2: Volume(name=NAME), 3: Volume(name="other", mode=0o700)}
    host.output.clear()
    assert host.run(config=mine, volumes=volumes) == 0
    assert host.output[4] == b"x\n"
    assert b"can't create /denied/y: Permission denied" in host.output[6]


def test_options_of_the_mount_hold(host: Host) -> None:
    mounts = [bind("/data", "rbind", "ro", "nosuid", "nodev", "noexec"), bind("/again", "rbind")]
    script = (
        "echo x >/data/x || echo no; echo y >/again/y; cat /data/y;"
        "while read -r line; do case $line in *' /data '*) echo $line; esac; done </proc/mounts"
    )
    request = config("sh", "-c", script, mounts=mounts)
    volumes = {2: Volume(name=NAME), 3: Volume(name=NAME)}
    assert host.run(config=request, volumes=volumes) == 0
    said = bytes(host.output[4]).decode().splitlines()
    assert said[:2] == ["no", "y"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(said[2].split()[3].split(","))


def test_in_memory(host: Host) -> None:
    volume = Volume(name=NAME, memory=True, size=1 << 20, mode=0o777)
    script = (
        "busybox grep ' /data ' /proc/mounts; dd if=/dev/zero of=/data/x bs=1k count=2k; ls /data"
    )
    said = say(host, script, "a", volume)
    assert " tmpfs " in said
    assert "size=1024k" in said
    assert "No space left on device" in said
    assert said.endswith("x\n")
    assert say(host, LOOK, "b", volume) == "777 0 0\nx\n"


def test_it_begins_with_what_the_image_has_there(host: Host) -> None:
    volume = Volume(name=NAME, mode=0o755, uid=9, copy_up=True)
    mounts = [bind("/etc", "rbind")]
    script = "cat /etc/passwd; echo more >>/etc/passwd; busybox stat -c '%a %u' /etc"
    said = say(host, script, "a", volume, mounts=mounts)
    assert said == "root:x:0:0:root:/root:/bin/sh\n755 0\n"
    said = say(host, "cat /etc/passwd", "b", volume, mounts=mounts)
    assert said == "root:x:0:0:root:/root:/bin/sh\nmore\n", "the second one finds what is there"
    nothing = Volume(name="nothing", mode=0o755, uid=9, copy_up=True)
    assert say(host, LOOK, "c", nothing) == "755 9 0\n", "where the image has nothing"
    without = Volume(name="without")
    assert say(host, "ls /etc", "d", without, mounts=mounts) == ""


def test_one_that_is_a_file(host: Host) -> None:
    """As kubelet's for last words; a container that is started again has the same."""
    volume = Volume(name=NAME, file=True, mode=0o666, gid=5)
    mounts = [bind("/dev/termination-log", "rbind")]
    script = "busybox stat -c '%F %a %u %g' /dev/termination-log; echo x >/dev/termination-log"
    assert say(host, script, "a", volume, mounts=mounts) == "regular empty file 666 0 5\n"
    assert say(host, "cat /data", "a", volume) == "x\n"


@pytest.mark.parametrize("first", ["directory", "file"])
def test_a_file_and_a_directory_of_one_name_are_two(host: Host, first: str) -> None:
    """Else a container could put a link where the agent mounts the file from: to anywhere in the guest."""
    directory, file = Volume(name=NAME), Volume(name=NAME, file=True)
    if first == "file":
        assert say(host, "echo x >/data", "a", file) == ""
    trap = "busybox rm -f /data/file; busybox ln -s /init /data/file; ls /data"
    assert say(host, trap, "b", directory) == "file\n"
    look = "busybox stat -c %F /data; cat /data"
    expected = "regular file\nx\n" if first == "file" else "regular empty file\n"
    assert say(host, look, "c", file) == expected


def part(subpath: str, **members: Any) -> Volume:
    return Volume(name=NAME, subpath=subpath, **members)


def test_a_part_of_it_is_made_with_mode_and_owner_and_is_the_same_for_all(host: Host) -> None:
    volume = part("a/b", mode=0o2775, gid=2000)
    assert say(host, f"{LOOK}; echo one >/data/file", "a", volume) == "2775 0 2000\n"
    whole = Volume(name=NAME)
    look = "busybox stat -c '%n %a %u %g' /data/a /data/a/b /data/a/b/file"
    owner = "/data/a 2775 0 2000\n/data/a/b 2775 0 2000\n/data/a/b/file 644 0 2000\n"
    assert say(host, look, "b", whole) == owner
    both = "cat /data1/file; echo two >/data1/more; cat /data/a/b/more; ls -a /data2"
    assert say(host, both, "c", whole, part("a/b"), part("c")) == "one\ntwo\n.\n..\n"
    assert say(host, "cat /data/file /data/more", "a", volume) == "one\ntwo\n", "again"


def test_a_part_that_is_a_file_is_that_file(host: Host) -> None:
    assert say(host, "echo x >/data/config; chmod 640 /data/config", "a", Volume(name=NAME)) == ""
    assert say(host, "cat /data; echo y >>/data", "b", part("config")) == "x\n"
    assert say(host, "cat /data", "c", part("config"), mounts=[bind("/data", "ro")]) == "x\ny\n"


def test_a_part_of_one_in_memory(host: Host) -> None:
    assert say(host, "echo x >/data/file", "a", part("a", memory=True)) == ""
    assert say(host, "cat /data/a/file; mount", "b", Volume(name=NAME)).startswith("x\n")
    assert " /data tmpfs" in say(host, "cat /proc/mounts", "c", part("a", memory=True))


@pytest.mark.parametrize(
    ("link", "subpath"), [("/etc", "x"), ("/etc", "x/y"), ("..", "x"), ("here", "x")]
)
def test_no_link_of_a_container_s_leads_another_out_of_it(
    host: Host, link: str, subpath: str
) -> None:
    script = f"mkdir /data/here; ln -s {link} /data/x"
    say(host, f"busybox {script.replace('; ', '; busybox ')}", "a", Volume(name=NAME))
    text = refused(host, ErrorCode.RUNTIME_FAILED, {2: part(subpath)})
    assert (
        text == "cannot mount a part of a volume at '/data': 'x' is neither a directory nor a file"
    )
    assert parts(host) == []


def test_a_part_below_a_file_and_one_that_is_a_fifo_are_refused(host: Host) -> None:
    say(host, "echo >/data/file; busybox mkfifo /data/fifo", "a", Volume(name=NAME))
    for subpath in ("file/x", "fifo"):
        text = refused(host, ErrorCode.RUNTIME_FAILED, {2: part(subpath)})
        assert "cannot mount a part of a volume at '/data'" in text
    assert say(host, "ls /data", "b", Volume(name=NAME)) == "fifo\nfile\n"


def parts(host: Host) -> list[str]:
    """What the agent itself still has of them."""
    assert "/parts/" not in host.guest_path("/proc/1/mounts").read_text()
    place = host.guest_path(PLACE).with_name("parts")
    return os.listdir(place) if place.exists() else []


def test_nothing_of_a_part_stays_mounted_in_the_agent(host: Host) -> None:
    refused(host, ErrorCode.PROGRAM_NOT_FOUND, {2: part("a")}, args=["/nowhere"])
    assert (left(host), parts(host)) == ([], [])
    request = config("busybox", "sleep", "1000", mounts=[bind("/data", "rbind")])
    answer = host.create(config=request, volumes={2: part("a")})
    assert isinstance(answer, messages.Done), answer
    assert parts(host) == []


def refused(host: Host, code: ErrorCode, volumes: dict[int, Volume], **members: Any) -> str:
    request = config(*members.pop("args", ["true"]), mounts=[bind("/data", "rbind")])
    stdio = {"stdin": 0, "stdout": 0, "stderr": 0}
    answer = host.create(container="c9", config=request, volumes=volumes, **stdio, **members)
    assert isinstance(answer, messages.Failed), answer
    assert answer.code is code, answer
    return answer.text


def test_a_container_that_fails_leaves_none_that_was_made_for_it(host: Host) -> None:
    volume = {2: Volume(name=NAME, memory=True)}
    refused(host, ErrorCode.PROGRAM_NOT_FOUND, volume, args=["/nowhere"])
    assert left(host) == []
    assert PLACE not in host.guest_path("/proc/1/mounts").read_text()
    assert say(host, "echo kept >/data/file", "a", Volume(name=NAME)) == ""
    refused(host, ErrorCode.PROGRAM_NOT_FOUND, {2: Volume(name=NAME)}, args=["/nowhere"])
    assert say(host, "cat /data/file", "b", Volume(name=NAME)) == "kept\n"


@pytest.mark.parametrize(
    ("volumes", "members", "text"),
    [
        ({0: Volume(name="x")}, {}, "mounts[0]: a source was sent for what is no bind"),
        ({5: Volume(name="x")}, {}, "mounts[5]: there is no such mount"),
        ({2: Volume(name="")}, {}, "mounts[2]: its volume has no name"),
        ({2: Volume(name="x" * 4097)}, {}, "mounts[2]: its volume has no name, or a longer one"),
        ({2: Volume(name="x", mode=0o10000)}, {}, "mounts[2]: its volume's mode or owner is none"),
        ({2: Volume(name="x", gid=-1)}, {}, "mounts[2]: its volume's mode or owner is none"),
        ({2: Volume(name="x", size=-1)}, {}, "mounts[2]: its volume's size is none"),
        ({2: part("/etc")}, {}, "mounts[2]: the part of its volume is no relative path"),
        ({2: part("x", file=True)}, {}, "mounts[2]: the part of its volume is no relative path"),
        ({2: part("a/../..")}, {}, "mounts[2]: the part of its volume is no relative path"),
        ({2: part("a//b")}, {}, "mounts[2]: the part of its volume is no relative path"),
        ({2: part("./a")}, {}, "mounts[2]: the part of its volume is no relative path"),
        ({2: part("a\0b")}, {}, "mounts[2]: the part of its volume is no relative path"),
        ({2: part("a/" * 2048)}, {}, "mounts[2]: the part of its volume is no relative path"),
        ({2: Volume(name="x")}, {"shared_mounts": (2,)}, "mounts[2]: two sources were sent"),
    ],
)
def test_what_a_host_may_not_say(
    host: Host, volumes: dict[int, Volume], members: dict[str, Any], text: str
) -> None:
    assert text in refused(host, ErrorCode.SPEC_REFUSED, volumes, **members)


def test_their_number_is_bounded(host: Host) -> None:
    for first in range(0, limits.VOLUMES, 64):
        volumes = [Volume(name=str(number)) for number in range(first, first + 64)]
        assert say(host, "true", "a", *volumes) == ""
    text = refused(host, ErrorCode.RUNTIME_FAILED, {2: Volume(name="one too many")})
    assert text == f"the sandbox has more than {limits.VOLUMES} volumes"
