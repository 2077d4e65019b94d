"""The VM's size follows its container's limits: a real shim, a VM that notes what it becomes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fixtures.shim import Request, Shim
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode, Phase
from simulators.guest import Guest

MIB = 1 << 20


@pytest.fixture
def guest(shim: Shim) -> Iterator[Guest]:
    with shim.guest() as one:
        create = shim.create()
        one.create()
        create.ok()
        yield one


def update(shim: Shim, memory: int | None = None, cpus: float | None = None) -> Request:
    resources: dict[str, object] = {}
    if memory is not None:
        resources["memory"] = {"limit": memory}
    if cpus is not None:
        resources["cpu"] = {"quota": int(cpus * 100_000) if cpus > 0 else -1, "period": 100_000}
    return shim.ask("update", "c1", json.dumps(resources))


def sizes(shim: Shim) -> list[str]:
    path = shim.path / "sizes"
    return path.read_text().splitlines() if path.exists() else []


def done(guest: Guest, kind: type[Any]) -> Any:
    request = guest.expect(kind)
    guest.send(messages.Done(id=request.id))
    return request


def test_it_grows_before_the_container_may_and_shrinks_after(shim: Shim, guest: Guest) -> None:
    request = update(shim, memory=300 * MIB, cpus=2.5)
    resized = guest.expect(messages.ResizeSandbox)
    assert (resized.cpus, sizes(shim)) == (3, ["3 556"])
    guest.send(messages.Done(id=resized.id))
    done(guest, messages.UpdateContainer)
    request.ok()

    request = update(shim, memory=100 * MIB)
    limits = guest.expect(messages.UpdateContainer)
    assert sizes(shim) == ["3 556"]
    guest.send(messages.Done(id=limits.id))
    request.ok()
    assert sizes(shim) == ["3 556", "3 356"], "CPUs stay"

    request = update(shim, memory=-1, cpus=-1)
    done(guest, messages.UpdateContainer)
    request.ok()
    assert sizes(shim)[2:] == ["3 256"]


def test_limits_that_the_vm_has_room_for_change_nothing(shim: Shim, guest: Guest) -> None:
    request = shim.ask(
        "update", "c1", '{"cpu": {"quota": 100000, "shares": 7}, "pids": {"limit": 5}}'
    )
    done(guest, messages.UpdateContainer)
    request.ok()
    assert sizes(shim) == []


def test_it_grows_as_far_as_it_can(shim: Shim, guest: Guest) -> None:
    """A limit is no reservation."""
    request = update(shim, memory=1000 * MIB)
    done(guest, messages.ResizeSandbox)
    done(guest, messages.UpdateContainer)
    request.ok()
    assert sizes(shim) == ["1 1024"]


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (
            {"memory": 1025 * MIB},
            "cannot give the container 1025 MiB of memory: its VM can have 1024",
        ),
        ({"cpus": 4.5}, "cannot give the container 5 CPUs: its VM can have 4"),
    ],
)
def test_what_no_vm_of_its_kind_can_be_is_refused(
    shim: Shim, guest: Guest, limits: dict[str, float], text: str
) -> None:
    error = update(shim, **limits).error()
    assert (error.kind, error.text) == ("host-unfit", text)
    assert "vm.max_memory" in error.remedy
    assert sizes(shim) == []
    assert shim.state()["status"] == "created"


def test_a_vmm_that_refuses_leaves_everything_as_it_was(shim: Shim, guest: Guest) -> None:
    (shim.path / "unyielding").touch()
    error = update(shim, memory=300 * MIB).error()
    assert (error.kind, error.text) == ("vmm-failed", "cannot resize the VM: it does not want to")
    assert shim.state()["status"] == "created"
    (shim.path / "unyielding").unlink()
    request = update(shim, memory=300 * MIB)
    done(guest, messages.ResizeSandbox)
    done(guest, messages.UpdateContainer)
    request.ok()


def test_a_vmm_that_does_not_give_up_memory_is_no_failure(shim: Shim, guest: Guest) -> None:
    request = update(shim, memory=300 * MIB)
    done(guest, messages.ResizeSandbox)
    done(guest, messages.UpdateContainer)
    request.ok()
    (shim.path / "unyielding").touch()
    request = update(shim, memory=100 * MIB)
    done(guest, messages.UpdateContainer)
    request.ok()


def test_a_guest_that_does_not_use_its_cpus(shim: Shim, guest: Guest) -> None:
    request = update(shim, cpus=2)
    resized = guest.expect(messages.ResizeSandbox)
    code = ErrorCode.RUNTIME_FAILED
    guest.send(messages.Failed(id=resized.id, phase=Phase.RUN, code=code, text="only 1 of 2 CPUs"))
    assert "only 1 of 2 CPUs" in request.error().text
    assert shim.state()["status"] == "created"
    request = update(shim, cpus=2)
    assert done(guest, messages.ResizeSandbox).cpus == 2, "it is asked again"
    done(guest, messages.UpdateContainer)
    request.ok()


def test_nonsense_is_refused_before_anything_is_done(shim: Shim, guest: Guest) -> None:
    assert shim.ask("update", "c1", '{"memory": {"limit": "x"}}').error().kind == "internal"
    assert sizes(shim) == []
