"""What the guest accepts of a config.json, and what it writes for crun.

The examples that engines wrote are read from `../shared/reference/examples`, beside the checkout;
those tests are skipped where it is not there.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.guest_config import DEFAULT_MOUNTS, MINIMAL, accept, changed, copies, refusal, request
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.container import spec
from sealrun_agent.errors import StartError
from sealrun_protocol.errors import ErrorCode

EXAMPLES = Path(__file__).resolve().parents[5] / "shared/reference/examples"


def example(name: str) -> dict[str, Any]:
    path = EXAMPLES / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_the_smallest() -> None:
    assert accept(MINIMAL) == {
        "ociVersion": "1.0.2",
        "process": MINIMAL["process"],
        "root": {"path": "/guest/root"},
        "mounts": DEFAULT_MOUNTS,
        "linux": {
            "namespaces": [{"type": n} for n in ("pid", "ipc", "uts", "mount", "cgroup")],
            "resources": {},
            "cgroupsPath": "/c/1",
        },
    }


def test_a_terminal_has_the_size_that_the_host_saw_last() -> None:
    document = changed(process={"terminal": True, "consoleSize": {"height": 5, "width": 6}})
    given = accept(document, terminal=True)["process"]
    assert (given["terminal"], given["consoleSize"]) == (True, {"height": 5, "width": 6})
    given = accept(document, terminal=True, rows=24, columns=80)["process"]
    assert given["consoleSize"] == {"height": 24, "width": 80}
    document = changed(process={"consoleSize": {"height": 5, "width": 6}})
    assert "consoleSize" not in accept(document)["process"]


def test_podman_s_example() -> None:
    given = example("podman-run-config.json")
    binds = {
        entry["destination"]: index
        for index, entry in enumerate(given["mounts"])
        if entry["type"] == "bind"
    }
    shared, copied = [binds.pop("/k")], [binds[path] for path in binds if path != "/dev/shm"]
    assert refusal(given, files=copies(*copied)).startswith(
        "mounts[0]: /k: the host shares no directory or file for it"
    )
    result = accept(given, files=copies(*copied), shared_mounts=tuple(shared))
    assert result["process"] == given["process"]
    assert result["hostname"] == given["hostname"]
    assert "annotations" not in result
    assert result["linux"]["maskedPaths"] == given["linux"]["maskedPaths"]
    assert result["linux"]["resources"]["memory"] == {"limit": 67108864}
    assert result["linux"]["resources"]["pids"] == {"limit": 2048}
    by_destination = {entry["destination"]: entry for entry in result["mounts"]}
    assert by_destination["/etc/hosts"] == {
        "destination": "/etc/hosts",
        "type": "bind",
        "source": f"/guest/files/{binds['/etc/hosts']}",
        "options": ["bind", "nosuid", "nodev", "noexec", "rw"],
    }
    assert by_destination["/k"]["source"] == f"/share/c1/{shared[0]}"
    assert by_destination["/dev/shm"]["type"] == "tmpfs"
    assert [entry["destination"] for entry in result["mounts"]] == [
        entry["destination"] for entry in given["mounts"]
    ]
    text = json.dumps(result)
    assert "/var/lib/containers" not in text
    assert "/run/netns" not in text
    assert "libpod" not in text


def test_containerd_s_example() -> None:
    given = example("ctr-run-config.json")
    result = accept(given)
    assert result["process"]["capabilities"] == given["process"]["capabilities"]
    assert result["process"]["noNewPrivileges"] is True
    assert result["linux"]["resources"]["devices"] == given["linux"]["resources"]["devices"]
    assert [entry["destination"] for entry in result["mounts"]] == [
        entry["destination"] for entry in given["mounts"]
    ]


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (b"", "config.json: input data was truncated"),
        (b"[]", "config.json: expected object, got array"),
        (b"\xff", "config.json: "),
        (b"[" * 100_000, "config.json: "),
        ({}, "config.json: object missing required field ociVersion"),
        (changed(windows={}), "config.json: object contains unknown field windows"),
        (changed(vm={}), "config.json: object contains unknown field vm"),
        (changed(ociVersion="2.0.0"), "ociVersion: '2.0.0' is not 1.x"),
        (changed(domainname="x" * 65), "domainname: it is longer than 64 bytes"),
        (changed(hostname="x" * 65), "hostname: it is longer than 64 bytes"),
        (
            changed(hooks={"createContainer": [{"path": "sh"}]}),
            "hooks.createContainer[0].path: 'sh' is not an absolute path",
        ),
        (
            changed(hooks={"startContainer": [{"path": "/sh", "timeout": 0}]}),
            "hooks.startContainer[0].timeout: expected int >= 1",
        ),
        (changed(hooks={"poststrat": []}), "hooks: object contains unknown field poststrat"),
        (changed(process={"args": [5]}), "process.args[0]: expected str, got int"),
        (changed(process={"args": []}), "process.args: there is no program to run"),
        (changed(process={"args": [""]}), "process.args: there is no program to run"),
        (changed(process={"args": ["a\0b"]}), "process.args[0]: it holds a NUL character"),
        (changed(process={"env": ["A=b", "C=\0"]}), "process.env[1]: it holds a NUL character"),
        (changed(process={"cwd": "relative"}), "process.cwd: 'relative' is not an absolute path"),
        (changed(process={"terminal": True}), "process.terminal: the request says otherwise"),
        (changed(process={"scheduler": {}}), "process: object contains unknown field scheduler"),
        (changed(process={"user": {"uid": -1, "gid": 0}}), "process.user.uid: expected int >= 0"),
        (
            changed(process={"user": {"uid": 0, "gid": 2**32 - 1}}),
            "process.user.gid: expected int <= 4294967294",
        ),
        (
            changed(process={"capabilities": {"bounding": ["CAP_KILL", "kill"]}}),
            "process.capabilities.bounding[1]: 'kill' is not a capability",
        ),
        (
            changed(process={"rlimits": [{"type": "NOFILE", "soft": 1, "hard": 1}]}),
            "process.rlimits[0]: 'NOFILE' is not a limit to set once",
        ),
        (
            changed(process={"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}] * 2}),
            "process.rlimits[1]: 'RLIMIT_NOFILE' is not a limit to set once",
        ),
        (
            changed(process={"rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]}),
            "process.rlimits[0]: 'RLIMIT_CPU' is not a limit to set once",
        ),
        (
            changed(process={"rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 2**64}]}),
            "process.rlimits[0].hard: it does not fit into 64 bits",
        ),
        (changed(process={"oomScoreAdj": 2000}), "process.oomScoreAdj: expected int <= 1000"),
    ],
)
def test_refused_at_the_top_and_in_the_process(document: dict[str, Any] | bytes, text: str) -> None:
    assert refusal(document).startswith(text)


def test_null_is_what_go_writes_for_an_empty_list() -> None:
    document = changed(
        process={"env": None, "rlimits": None, "capabilities": {"ambient": None}},
        linux={"maskedPaths": None, "sysctl": None, "resources": {"devices": None}},
        mounts=None,
    )
    assert accept(document)["process"] == MINIMAL["process"] | {"capabilities": {}}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)
SOMEWHERE: list[Callable[[Any], dict[str, Any]]] = [
    lambda value: changed(process=value if isinstance(value, dict) else {"args": value}),
    lambda value: changed(linux=value if isinstance(value, dict) else {"resources": value}),
    lambda value: changed(mounts=value),
    lambda value: changed(mounts=[value]),
    lambda value: changed(hooks=value),
    lambda value: changed(linux={"sysctl": value}),
    lambda value: changed(linux={"seccomp": value}),
    lambda value: changed(process={"user": value}),
]


@given(value=JSON, place=st.sampled_from(SOMEWHERE))
def test_whatever_stands_in_a_place_is_accepted_or_refused_by_name(
    value: Any, place: Callable[[Any], dict[str, Any]]
) -> None:
    try:
        spec.accept(request(place(value)))
    except StartError as error:
        assert error.code is ErrorCode.SPEC_REFUSED


@given(st.binary(max_size=200))
def test_whatever_bytes_are_refused(text: bytes) -> None:
    refusal(text)
