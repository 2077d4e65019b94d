"""Files of the engine's that the guest has copies of, on both sides: the shim sees that an original was
written, the agent writes the copy."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.agent import Host, config
from fixtures.shim import Shim, running, wait
from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.messages import File, RefreshFiles
from sealrun_runtime.oci_config import Mount
from simulators.guest import Guest

pytestmark = pytest.mark.root

DESTINATIONS = ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname")


# --- the shim ----------------------------------------------------------------------------------------


@pytest.fixture
def originals(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for destination in DESTINATIONS:
        path = found[destination] = tmp_path / destination.rpartition("/")[2]
        path.write_text("first\n")
    return found


@pytest.fixture
def shim(tmp_path: Path, originals: dict[str, Path]) -> Iterator[Shim]:
    mounts = tuple(
        Mount(destination=destination, type="bind", source=str(path))
        for destination, path in originals.items()
    )
    with running(tmp_path / "root", mounts=mounts) as one:
        yield one


def created(shim: Shim, guest: Guest) -> None:
    request = shim.create()
    assert {index: file.content for index, file in guest.create().files.items()} == {
        0: b"first\n",
        1: b"first\n",
        2: b"first\n",
    }
    request.ok()


def started(shim: Shim, guest: Guest) -> None:
    created(shim, guest)
    starting = shim.start()
    guest.start()
    starting.ok()


def refreshed(guest: Guest) -> dict[int, bytes]:
    message = guest.expect(RefreshFiles)
    guest.send(messages.Done(id=message.id))
    return {index: file.content for index, file in message.files.items()}


def test_what_was_written_until_the_start_is_there_when_the_program_runs(
    shim: Shim, guest: Guest, originals: dict[str, Path]
) -> None:
    created(shim, guest)
    originals["/etc/resolv.conf"].write_text("nameserver 192.0.2.1\n")
    originals["/etc/hostname"].write_text("nobody changes it\n")
    starting = shim.start()
    assert refreshed(guest) == {1: b"nameserver 192.0.2.1\n"}
    guest.start()
    starting.ok()


def test_what_is_written_while_it_starts(
    shim: Shim, guest: Guest, originals: dict[str, Path]
) -> None:
    created(shim, guest)
    starting = shim.start()
    message = guest.expect(messages.StartContainer)
    originals["/etc/hosts"].write_text("second\n")
    assert refreshed(guest) == {0: b"second\n"}
    guest.send(messages.Done(id=message.id))
    starting.ok()


def test_what_is_written_while_it_runs(
    shim: Shim, guest: Guest, originals: dict[str, Path]
) -> None:
    started(shim, guest)
    for text in ("second\n", "third\n"):
        originals["/etc/hosts"].write_text(text)
        assert refreshed(guest) == {0: text.encode()}
    originals["/etc/hosts"].write_text("third\n")
    originals["/etc/hostname"].write_text("nobody changes it\n")
    assert guest.receive(0.5) is None
    originals["/etc/hosts"].unlink()
    originals["/etc/resolv.conf"].write_text("fourth\n")
    assert refreshed(guest) == {1: b"fourth\n"}
    assert "hosts" in shim.log()


def test_one_that_is_being_written_is_not_looked_at(
    shim: Shim, guest: Guest, originals: dict[str, Path]
) -> None:
    """It is empty for a moment; what happens to another file meanwhile is no reason to send that."""
    started(shim, guest)
    with originals["/etc/resolv.conf"].open("w") as file:
        originals["/etc/hosts"].write_text("second\n")
        assert refreshed(guest) == {0: b"second\n"}
        originals["/etc/hosts"].unlink()
        assert guest.receive(0.5) is None
        file.write("third\n")
    assert refreshed(guest) == {1: b"third\n"}


def test_a_guest_that_does_not_take_it_does_no_harm(
    shim: Shim, guest: Guest, originals: dict[str, Path]
) -> None:
    started(shim, guest)
    originals["/etc/hosts"].write_text("second\n")
    message = guest.expect(RefreshFiles)
    failed = {"phase": "run", "code": ErrorCode.RUNTIME_FAILED, "text": "no"}
    guest.send(messages.Failed(id=message.id, **failed))  # type: ignore[arg-type]
    wait(lambda: "stay as they were" in shim.log())
    assert shim.state()["status"] == "running"
    originals["/etc/hosts"].write_text("third\n")
    assert refreshed(guest) == {0: b"third\n"}
    guest.exit("c1", 0)
    assert shim.code() == 0
    shim.gone()


# --- the guest ---------------------------------------------------------------------------------------


@pytest.fixture
def container(host: Host) -> Host:
    """One that runs and has a copy at mounts[2]."""
    mount = {"destination": "/etc/hosts", "type": "bind", "source": "/x", "options": ["bind"]}
    document = json.loads(config("sh", "-c", "echo up; exec sleep 1000", mounts=[mount]))
    files = {2: File(content=b"first\n", mode=0o640, uid=7)}
    done = host.create(config=json.dumps(document).encode(), files=files)
    assert isinstance(done, messages.Done), done
    return host


def refresh(host: Host, files: dict[int, File]) -> Any:
    return host.request(RefreshFiles, container="c1", files=files)


def test_a_copy_is_written_in_place(container: Host) -> None:
    """Before the start and after; its mode and owner stay."""
    assert isinstance(refresh(container, {2: File(content=b"longer than before\n")}), messages.Done)
    container.start()
    container.wait_output(b"up\n")
    assert container.run_in("sh", "-c", "cat /etc/hosts; ls -ln /etc/hosts") == 0
    lines = bytes(container.output[14]).decode().splitlines()
    assert lines[0] == "longer than before"
    assert lines[1].split()[:3] == ["-rw-r-----", "1", "7"]
    assert isinstance(refresh(container, {2: File(content=b"short\n")}), messages.Done)
    assert container.run_in("cat", "/etc/hosts", process="p2", stdin=22, stdout=24, stderr=26) == 0
    assert bytes(container.output[24]) == b"short\n"


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({3: File(content=b"x")}, "mounts[3]: there is no copy of its file"),
        ({-1: File(content=b"x")}, "mounts[-1]: there is no copy of its file"),
        ({2: File(content=b"x", mode=0o4755)}, "mounts[2]: its file's mode or owner is none"),
        (
            {2: File(content=bytes(limits.FILE_BYTES + 1))},
            f"mounts[2]: its file is longer than {limits.FILE_BYTES} bytes",
        ),
    ],
)
def test_what_is_refused(container: Host, files: dict[int, File], text: str) -> None:
    failed = refresh(container, files)
    assert isinstance(failed, messages.Failed)
    assert (failed.code, failed.text) == (ErrorCode.SPEC_REFUSED, text)
    container.start()
    container.wait_output(b"up\n")
    assert container.run_in("cat", "/etc/hosts") == 0
    assert bytes(container.output[14]) == b"first\n"


def test_a_container_that_is_not_there(host: Host) -> None:
    failed = refresh(host, {2: File(content=b"x")})
    assert failed.code is ErrorCode.CONTAINER_UNKNOWN
