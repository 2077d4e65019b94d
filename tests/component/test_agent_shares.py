"""What the host shares, in the real agent with real crun. A bound directory takes the place of the
virtio-fs device; tests/system has that."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures import oci
from fixtures.agent import Host, agent, config
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode, Phase

pytestmark = pytest.mark.root

STDOUT = 4
NO_STDIO = {"stdin": 0, "stdout": 0, "stderr": 0}
PLACES = "/run/sealrun/host/container"


def share(host: Host, container: str = "c1", volumes: int = 1) -> Path:
    """What the host shares for a container: a root, and the sources of mounts from number 2 on."""
    directory = host.shared / container
    oci.busybox_tree(directory / "root")
    for number in range(2, 2 + volumes):
        (directory / str(number)).mkdir()
    return directory


def binds(*destinations: str, options: tuple[str, ...] = ("rbind",)) -> list[dict[str, Any]]:
    return [
        {"destination": path, "type": "bind", "source": "/etc", "options": list(options)}
        for path in destinations
    ]


def refused(host: Host, code: ErrorCode, **members: Any) -> str:
    answer = host.create("true", container="c9", **NO_STDIO, **members)
    assert isinstance(answer, messages.Failed), answer
    assert (answer.code, answer.phase) == (code, Phase.START), answer
    return answer.text


def left(host: Host) -> list[str]:
    mounts = host.guest_path("/proc/1/mounts").read_text().splitlines()
    places = host.guest_path(PLACES)
    names = [entry.name for entry in places.iterdir()] if places.is_dir() else []
    return names + [line for line in mounts if PLACES in line]


def test_a_container_runs_from_the_host_s_directory_live_in_both_directions(host: Host) -> None:
    directory = share(host, volumes=2)
    (directory / "3").rmdir()
    (directory / "3").write_text("single")
    script = (
        "cat /single; echo; echo from-container >/new; echo volume >/data/new; echo ready;"
        "read line; cat /later /data/later; test -e /data/bin && echo no"
    )
    request = config("sh", "-c", script, mounts=binds("/data", "/single"))
    done = host.create(config=request, image="", shared_root=True, shared_mounts=(2, 3))
    assert isinstance(done, messages.Done), done
    assert done.image_digest == ""
    host.start()
    host.wait_output(b"single\nready\n")
    assert (directory / "root/new").read_text() == "from-container\n"
    assert (directory / "2/new").read_text() == "volume\n"
    (directory / "root/later").write_text("one\n")
    (directory / "2/later").write_text("two\n")
    host.send(messages.StreamData(stream=2, data=b"go\n"))
    assert host.exit_code() == 1
    assert bytes(host.output[STDOUT]).endswith(b"one\ntwo\n")
    assert isinstance(host.delete(), messages.Done)
    assert left(host) == []


def test_read_only_and_other_options_reach_the_container(host: Host) -> None:
    share(host)
    script = (
        "touch /data/x || echo read-only; while read -r line; do echo $line; done </proc/mounts"
    )
    mounts = binds("/data", options=("rbind", "ro", "nosuid", "nodev", "noexec"))
    request = config("sh", "-c", script, mounts=mounts)
    assert host.run(config=request, shared_mounts=(2,)) == 0
    output = bytes(host.output[STDOUT]).decode()
    assert output.startswith("read-only\n")
    line = next(line for line in output.splitlines() if " /data " in line)
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(line.split()[3].split(","))


def test_a_container_beside_it_sees_nothing_of_it(host: Host) -> None:
    share(host, "c1")
    share(host, "c2")
    (host.shared / "c1/2/mine").touch()
    request = config("sh", "-c", "ls /data; cat", mounts=binds("/data"))
    for container, stream in (("c1", 2), ("c2", 20)):
        members = {"stdin": stream, "stdout": stream + 2, "stderr": stream + 4}
        done = host.create(config=request, container=container, shared_mounts=(2,), **members)
        assert isinstance(done, messages.Done), done
        host.start(container)
        host.send(messages.StreamEnd(stream=stream))
        assert host.exit_code(container) == 0
    assert (bytes(host.output[4]), bytes(host.output.get(22, b""))) == (b"mine\n", b"")
    assert isinstance(host.delete("c1"), messages.Done)
    assert [name for name in left(host) if "/" not in name] == ["c2"]


def test_a_host_that_shares_something_else_than_it_says(host: Host, tmp_path: Path) -> None:
    """Whoever serves the tree may put anything there. Links would lead into the guest's own root."""
    directory = share(host, "c9")
    (directory / "2").rmdir()
    (directory / "2").symlink_to("/etc")
    request = config("true", mounts=binds("/data"))
    members: dict[str, Any] = {"config": request, "shared_mounts": (2,)}
    text = refused(host, ErrorCode.RUNTIME_FAILED, **members)
    assert text == "cannot take the host's c9/2: Too many levels of symbolic links"
    (directory / "2").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "2"))
    text = refused(host, ErrorCode.RUNTIME_FAILED, **members)
    assert text == "cannot take the host's c9/2: it is neither a directory nor a file"
    (directory / "2").unlink()
    text = refused(host, ErrorCode.RUNTIME_FAILED, **members)
    assert text == "cannot take the host's c9/2: No such file or directory"
    (tmp_path / "elsewhere").mkdir()
    os.rename(directory, tmp_path / "elsewhere/c9")
    directory.symlink_to(tmp_path / "elsewhere/c9")
    (tmp_path / "elsewhere/c9/2").mkdir()
    text = refused(host, ErrorCode.RUNTIME_FAILED, **members)
    assert "Too many levels of symbolic links" in text
    assert left(host) == []
    assert host.run("true") == 0, "the sandbox goes on"


def test_what_the_kernel_believes_of_a_name_for_a_moment_is_waited_for(host: Host) -> None:
    """A container of a pod that is started again at once has the name of the one before it."""
    directory = share(host, "c9")
    (directory / "2").rename(directory / "later")
    request = config("true", mounts=binds("/data"))
    number = host.ask_create(container="c9", **NO_STDIO, config=request, shared_mounts=(2,))
    time.sleep(0.3)
    (directory / "later").rename(directory / "2")
    answer = host.answer(number)
    assert isinstance(answer, messages.Done), answer


def test_a_root_that_is_a_link_is_not_the_guest_s(host: Host) -> None:
    (host.shared / "c9").mkdir(parents=True)
    (host.shared / "c9/root").symlink_to("/")
    text = refused(host, ErrorCode.RUNTIME_FAILED, image="", shared_root=True)
    assert text == "cannot take the host's c9/root: Too many levels of symbolic links"
    assert left(host) == []


def test_a_vm_without_the_device(host: Host) -> None:
    text = refused(host, ErrorCode.RUNTIME_FAILED, image="", shared_root=True)
    assert text.startswith("cannot take the host's directories: ")


def test_sources_that_do_not_fit_the_config(host: Host) -> None:
    share(host, "c9")
    text = refused(host, ErrorCode.SPEC_REFUSED, config=config("true"), shared_mounts=(0,))
    assert text == "mounts[0]: a source was sent for what is no bind"
    request = config("true", mounts=binds("/data"))
    text = refused(host, ErrorCode.SPEC_REFUSED, config=request)
    assert text == "mounts[2]: /data: the host shares no directory or file for it"


def _document(*lines: str) -> bytes:
    ours = "\n".join(lines)
    return (
        f"version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"sealrun.toml\" = '''\n{ours}\n'''\n"
    ).encode()


@pytest.mark.parametrize(
    ("tee", "document", "root", "volume"),
    [
        ("none", b"", True, True),
        ("none", _document(), False, False),
        ("none", _document("[host]", "insecure_shared_root = true"), True, False),
        ("none", _document("[host]", 'insecure_shared_directories = ["/data"]'), False, True),
        ("none", _document("[host]", 'insecure_shared_directories = ["/da"]'), False, False),
        ("none", _document("[container]", "insecure_any_process = true"), False, False),
        ("tpm", b"", False, False),
        ("tpm", _document("[host]", 'insecure_shared_directories = ["/"]'), False, True),
    ],
)
def test_only_where_the_tenant_says_so_or_there_is_none(
    tmp_path: Path, tee: str, document: bytes, root: bool, volume: bool
) -> None:
    with agent(tmp_path, tee) as host:
        host.configure(document)
        share(host, "c9")
        requests: list[tuple[bool, dict[str, Any]]] = [
            (root, {"image": "", "shared_root": True}),
            (volume, {"config": config("true", mounts=binds("/data")), "shared_mounts": (2,)}),
        ]
        for allowed, members in requests:
            if allowed:
                answer = host.create("true", container="c9", **NO_STDIO, **members)
                assert isinstance(answer, messages.Done), answer
                assert isinstance(host.delete("c9"), messages.Done)
                continue
            text = refused(host, ErrorCode.POLICY_DENIED, **members)
            if tee == "none":
                assert text.endswith("and [host] of the init-data does not allow it")
            assert left(host) == []


def test_the_document_is_what_the_host_sent(host: Host) -> None:
    """Indices are those of config.json, whatever the guest puts before them."""
    directory = share(host)
    (directory / "2/file").write_text("content")
    document = json.loads(config("cat", "/data/file", mounts=binds("/data")))
    document["mounts"][1]["destination"] = "/devices"
    request = json.dumps(document).encode()
    assert host.run(config=request, image="", shared_root=True, shared_mounts=(2,)) == 0
    assert bytes(host.output[STDOUT]) == b"content"
