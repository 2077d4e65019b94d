"""The features document claims what the guest accepts, and no more."""

import json
import re
import subprocess

import pytest
from sealrun_agent.container import mounts
from sealrun_agent.container.linux import accept_linux
from sealrun_agent.container.runtime_spec import IdMapping, Linux, Mount, Namespace, Seccomp
from sealrun_agent.errors import StartError
from sealrun_runtime.commands import features

REFUSED_BY_KIND = {"bind", "rbind", "rro", "tmpcopyup"}


def accept(mount: Mount) -> tuple[Mount, ...]:
    shared = mounts.Sources(shared=[0]) if mount.type in ("", "bind") else mounts.Sources()
    return mounts.accept_mounts([mount], shared, shared_root=False)


@pytest.mark.parametrize("option", sorted(set(features.MOUNT_OPTIONS) - REFUSED_BY_KIND))
def test_mount_options_are_accepted(option: str) -> None:
    for kind in ("proc", "sysfs", "mqueue", "tmpfs", "devpts", "cgroup"):
        (mount,) = accept(Mount("/x", kind, kind, (option,)))
        assert mount.options == (option,)


def test_mount_options_of_one_kind() -> None:
    accept(Mount("/x", "tmpfs", "tmpfs", ("tmpcopyup",)))
    for option in ("bind", "rbind"):
        accept(Mount("/x", "", "/x", (option, "rro")))


@pytest.mark.parametrize(
    "option", ["remount", "idmap", "lazytime", "iversion", "silent", "nosymfollow"]
)
def test_what_is_refused_is_not_claimed(option: str) -> None:
    assert option not in features.MOUNT_OPTIONS
    with pytest.raises(StartError):
        accept(Mount("/x", "bind", "/x", (option,)))


def test_namespaces() -> None:
    linux = features.document()["linux"]
    assert isinstance(linux, dict)
    for kind in linux["namespaces"]:
        ids = (IdMapping(0, 0, 1),) if kind == "user" else None
        accept_linux(Linux(namespaces=(Namespace(kind),), uidMappings=ids, gidMappings=ids))
    assert "time" not in linux["namespaces"]
    with pytest.raises(StartError):
        accept_linux(Linux(namespaces=(Namespace("time"),)))


def test_seccomp() -> None:
    seccomp = features.SECCOMP
    actions, archs, flags = seccomp["actions"], seccomp["archs"], seccomp["knownFlags"]
    assert isinstance(actions, list)
    assert isinstance(archs, list)
    assert isinstance(flags, list)
    for action in actions:
        accept_linux(
            Linux(
                seccomp=Seccomp(
                    defaultAction=action, architectures=tuple(archs), flags=tuple(flags)
                )
            )
        )
    for action in ("SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE"):
        with pytest.raises(StartError):
            accept_linux(Linux(seccomp=Seccomp(defaultAction=action)))


def test_the_shape_of_the_document() -> None:
    document = features.document()
    assert document["ociVersionMin"] == "1.0.0"
    assert document["hooks"] == [
        "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
    ]  # fmt: skip
    linux = document["linux"]
    assert isinstance(linux, dict)
    assert len(linux["capabilities"]) == 41
    for absent in ("apparmor", "selinux", "intelRdt"):
        assert linux[absent] == {"enabled": False}
    assert linux["mountExtensions"] == {"idmap": {"enabled": False}}


# runtime-spec 1.3, features.md and features-linux.md: what each member is, as text.
TEXTS = "texts"
SHAPE: dict[str, object] = {
    "ociVersionMin": "version",
    "ociVersionMax": "version",
    "hooks": TEXTS,
    "mountOptions": TEXTS,
    "annotations": "texts by name",
    "potentiallyUnsafeConfigAnnotations": TEXTS,
    "linux": {
        "namespaces": TEXTS,
        "capabilities": TEXTS,
        "cgroup": dict.fromkeys(("v1", "v2", "systemd", "systemdUser", "rdma"), "flag"),
        "seccomp": {
            "enabled": "flag",
            **dict.fromkeys(
                ("actions", "operators", "archs", "knownFlags", "supportedFlags"), TEXTS
            ),
        },
        "apparmor": {"enabled": "flag"},
        "selinux": {"enabled": "flag"},
        "intelRdt": {"enabled": "flag"},
        "mountExtensions": {"idmap": {"enabled": "flag"}},
        "netDevices": {"enabled": "flag"},
    },
}


def misshapen(value: object, shape: object, path: str = "$") -> list[str]:
    """Where a document is not what the specification says."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [path]
        wrong = [f"{path}.{name}" for name in value if name not in shape]
        for name in value.keys() & shape.keys():
            wrong += misshapen(value[name], shape[name], f"{path}.{name}")
        return wrong
    fits = {
        "flag": isinstance(value, bool),
        "version": isinstance(value, str) and re.fullmatch(r"\d+\.\d+\.\d+(-\w+)?", value),
        TEXTS: isinstance(value, list)
        and all(isinstance(one, str) for one in value)
        and len(set(value)) == len(value),
        "texts by name": isinstance(value, dict)
        and all(isinstance(one, str) for pair in value.items() for one in pair),
    }
    return [] if fits[str(shape)] else [path]


def test_the_document_has_the_shape_of_the_specification() -> None:
    ours = json.loads(json.dumps(features.document()))
    assert misshapen(ours, SHAPE) == []
    assert {"ociVersionMin", "ociVersionMax"} <= set(ours)


def test_runc_s_document_has_it_too_and_no_member_more() -> None:
    """CRI-O reads both alike."""
    done = subprocess.run(["runc", "features"], capture_output=True, check=True, timeout=60)
    theirs = json.loads(done.stdout)
    assert misshapen(theirs, SHAPE) == []
    ours = features.document()
    assert set(theirs) <= set(ours)
    linux = ours["linux"]
    assert isinstance(linux, dict)
    assert set(theirs["linux"]) <= set(linux)
    for part in ("cgroup", "seccomp", "apparmor", "selinux"):
        assert set(theirs["linux"][part]) <= set(linux[part]), part
    assert theirs["hooks"] == ours["hooks"]
    assert set(linux["namespaces"]) == set(theirs["linux"]["namespaces"])


def test_what_is_wrong_is_found() -> None:
    for wrong in (
        {"hooks": "prestart"},
        {"ociVersionMin": "one"},
        {"lunch": []},
        {"linux": {"cgroup": {"v1": "yes"}}},
        {"hooks": ["prestart", "prestart"]},
        {"annotations": {"a": 1}},
    ):
        assert misshapen(wrong, SHAPE) != []
