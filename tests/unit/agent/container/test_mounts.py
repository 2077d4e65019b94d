"""Which mounts of a config.json the guest accepts, and where their sources are then."""

from typing import Any

import pytest
from fixtures.guest_config import accept, changed, copies, mount, refusal, request
from sealrun_agent.container import spec
from sealrun_protocol import limits, messages


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (mount("/data", "bind"), ": /data: the host shares no directory or file for it"),
        (mount("/data", "", "rbind"), ": /data: the host shares no directory or file for it"),
        (mount("/x", "bind", "bind", source="/dev/vda"), ": /x: the host shares no directory"),
        (mount("/etc/hosts", "bind"), ": /etc/hosts: the host shares no directory or file"),
        (mount("/x", "ext4"), ".type: a mount of type 'ext4' is not supported in the guest"),
        (mount("/x", "overlay", "lowerdir=/"), ".type: a mount of type 'overlay'"),
        (mount("/x", ""), ".type: a mount of type '' is not supported"),
        (mount("", "tmpfs"), ".destination: the root is the image's"),
        (mount("../x", "tmpfs"), ".destination: '/../x' is not an absolute path"),
        (mount("/a/../../x", "tmpfs"), ".destination: '/a/../../x' is not an absolute path"),
        (mount("/", "tmpfs"), ".destination: the root is the image's"),
        (mount("/x", "tmpfs", "lazytime"), ".options[0]: option 'lazytime' is not accepted"),
        (mount("/x", "tmpfs", "idmap"), ".options[0]: option 'idmap' is not accepted"),
        (mount("/x", "tmpfs", "remount"), ".options[0]: option 'remount' is not accepted"),
        (mount("/sys", "bind", "rbind", source="/proc"), ": /sys: the host shares no"),
        (mount("/x", "tmpfs", "ro", "size=1;2"), ".options[1]: option 'size=1;2' is not accepted"),
        (mount("/x", "tmpfs", "mpol=bind"), ".options[0]: option 'mpol=bind' is not accepted"),
        (mount("/proc", "proc", "hidepid=9"), ".options[0]: option 'hidepid=9' is not accepted"),
        (mount("/x", "tmpfs", "ro\n"), ".options[0]: option 'ro\\n' is not accepted"),
        (mount("/dev/pts", "devpts", "bind"), ".options[0]: option 'bind' is not accepted"),
    ],
)
def test_refused_mounts(given: dict[str, Any], text: str) -> None:
    document = changed(mounts=[mount("/proc", "proc"), given])
    assert refusal(document).startswith(f"mounts[1]{text}")


def test_accepted_mounts_have_the_guest_s_own_sources() -> None:
    document = changed(
        mounts=[
            mount("/proc", "proc", "nosuid"),
            mount("/tmp", "tmpfs", "size=64m", "mode=1777", "tmpcopyup", "rprivate"),
            mount("/sys/fs/cgroup", "cgroup2", "ro"),
            mount("/dev/shm", "bind", "bind", source="/etc"),
            mount("/run/.containerenv", "bind", "ro", "exec", "suid", source="/etc/shadow"),
            mount("/data", "bind", "rbind", "nodev", "rro", source="/etc"),
            mount("data/sub", "none", "bind", "rw", "rslave", source="../.."),
            mount("/sys", "bind", "rbind", "rprivate", "ro", source="/sys"),
            mount("/etc/motd", "bind", "bind", "ro", source="/dev/null"),
        ]
    )
    result = accept(document, files=copies(4), shared_mounts=(5, 6), shm_bytes=4096)
    assert [(entry["type"], entry["source"]) for entry in result["mounts"]] == [
        ("proc", "proc"),
        ("tmpfs", "tmpfs"),
        ("cgroup", "cgroup"),
        ("tmpfs", "shm"),
        ("bind", "/guest/files/4"),
        ("bind", "/share/c1/5"),
        ("bind", "/share/c1/6"),
        ("sysfs", "sysfs"),
        ("bind", "/dev/null"),
    ]
    options = [entry["options"] for entry in result["mounts"]]
    assert options[3] == ["nosuid", "noexec", "nodev", "mode=1777", "size=4096"]
    assert options[4] == ["bind", "nosuid", "nodev", "noexec", "ro"]
    assert options[5] == ["rbind", "nodev", "rro"]
    assert options[6] == ["rbind", "rw", "rslave"]
    assert options[7] == ["rprivate", "ro"]
    accepted = spec.accept(request(document, files=copies(4), shared_mounts=(5, 6)))
    assert accepted.shared == ("/data", "/data/sub")


def test_what_podman_adds_to_mounts_for_itself() -> None:
    """`-v NAME:/data:nocopy`, `--security-opt proc-opts=…`, and `--systemd` on a host with version 1."""
    systemd = mount("/sys/fs/cgroup/systemd", "bind", "bind", source="/sys/fs/cgroup/systemd")
    document = changed(
        mounts=[
            mount("/proc", "proc", "hidepid=2", "gid=5", "subset=pid"),
            systemd,
            mount("/data", "bind", "nocopy", "rbind", source="/v"),
            mount("/etc/passwd", "bind", "ro", source="/u/passwd"),
            mount("/etc/group", "bind", "ro", source="/u/group"),
        ]
    )
    mounts = accept(document, shared_mounts=(2,))["mounts"]
    assert [one["destination"] for one in mounts] == ["/proc", "/data"]
    shared = accept(document, shared_mounts=(2, 3))["mounts"]
    assert shared[2]["source"].endswith("/3"), "who shares one of his own means it"
    assert mounts[0]["options"] == ["hidepid=2", "gid=5", "subset=pid"]
    assert mounts[1]["options"] == ["rbind"]


def test_an_empty_file_over_the_image_s_users_hides_them() -> None:
    """Where it was left out, as an engine's own copy is, the image's would be seen again."""
    hidden = mount("/etc/passwd", "bind", "bind", "ro", source="/dev/null")
    (kept,) = accept(changed(mounts=[hidden]))["mounts"]
    assert (kept["destination"], kept["source"]) == ("/etc/passwd", "/dev/null")


def test_a_shared_root_without_dev_gets_one_of_the_guest_s() -> None:
    document = changed(mounts=[mount("/proc", "proc")])
    assert [entry["destination"] for entry in accept(document)["mounts"]] == ["/proc"]
    result = accept(document, shared_root=True)["mounts"]
    assert [(entry["destination"], entry["type"]) for entry in result] == [
        ("/dev", "tmpfs"),
        ("/proc", "proc"),
    ]
    document = changed(mounts=[mount("/dev/", "tmpfs"), mount("/proc", "proc")])
    assert len(accept(document, shared_root=True)["mounts"]) == 2


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"shared_mounts": (0, 2)}, "mounts[2]: there is no such mount, but a source for it"),
        ({"shared_mounts": (-1,)}, "mounts[-1]: there is no such mount"),
        ({"files": copies(9)}, "mounts[9]: there is no such mount"),
        ({"shared_mounts": (0, 1)}, "mounts[1]: a source was sent for what is no bind"),
        ({"files": copies(0, 1)}, "mounts[1]: a source was sent for what is no bind"),
        ({"files": copies(0), "shared_mounts": (0,)}, "mounts[0]: two sources were sent for it"),
        ({"shared_mounts": (0,) * 129}, "mounts: more than 128 are directories of the host"),
        (
            {"files": {0: messages.File(content=bytes(limits.FILE_BYTES + 1))}},
            "mounts[0]: its file is longer than",
        ),
        (
            {"files": {0: messages.File(content=b"", mode=0o4755)}},
            "mounts[0]: its file's mode or owner is none",
        ),
        (
            {"files": {0: messages.File(content=b"", uid=-1)}},
            "mounts[0]: its file's mode or owner is none",
        ),
    ],
)
def test_refused_sources(members: dict[str, Any], text: str) -> None:
    document = changed(mounts=[mount("/data", "bind"), mount("/proc", "proc")])
    assert refusal(document, **members).startswith(text)


@pytest.mark.parametrize("option", ["remount", "idmap", "lazytime", "size=5", "copyup"])
def test_refused_options_of_a_share(option: str) -> None:
    document = changed(mounts=[mount("/data", "bind", "rbind", option)])
    text = f"mounts[0].options[1]: option '{option}' is not accepted"
    assert refusal(document, shared_mounts=(0,)) == text
