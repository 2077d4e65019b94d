"""A `create` on a real shim is called off, or killed, at each moment of the sandbox's beginning."""

import signal

import pytest
from component.faults.conftest import Host, wait_until
from fixtures import simulated

pytestmark = pytest.mark.root

MOMENTS = {
    "a directory": lambda host: host.sandbox.directory.exists(),
    "a shim": lambda host: host.sandbox.has("shim"),
    "a stand-in": lambda host: host.sandbox.has("stand-in"),
    "a VMM": lambda host: host.sandbox.has("vmm"),
    "a guest": lambda host: "hello: " in log(host),
    "a pull": lambda host: "pull: waiting" in log(host),
}


def log(host: Host) -> str:
    try:
        return (host.sandbox.directory / "shim.log").read_text()
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", MOMENTS)
def test_there_is(host: Host, moment: str, number: signal.Signals) -> None:
    creation = host.begin(host.bundle(image=simulated.WAITING_IMAGE))
    creation.wait_for(lambda: MOMENTS[moment](host))
    creation.process.send_signal(number)
    status = creation.wait()
    if number == signal.SIGKILL:
        assert status == -number
        # Nobody asked for a delete yet: what costs anything goes by itself.
        wait_until(lambda: host.remains.processes() == [], f"{host.remains.processes()}")
    else:
        assert status == 1
        assert creation.said() == f"sealrun: interrupted by {number.name}\n"
        assert host.remains.all(guests=False) == []
    host.force_away()
