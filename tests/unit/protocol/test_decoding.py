"""Types that several threads meet at once: two containers of a pod that were created at one moment ended
their VM."""

import subprocess
import sys

RACE = """
import sys, threading
import msgspec
from sealrun_protocol.decoding import from_json, from_values

sys.setswitchinterval(1e-6)


def meet(function, value, kind):
    gate = threading.Barrier(4)

    def come():
        gate.wait()
        said.append(function(value, kind).members[0].name)

    said = []
    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["x"] * 4


names = [(f"m{number}", str, "") for number in range(20)]
for _ in range(400):
    inner = msgspec.defstruct("Inner", [("name", str), *names])
    outer = msgspec.defstruct("Outer", [("members", tuple[inner, ...]), *names])
    meet(from_json, b'{"members": [{"name": "x"}]}', outer)
    inner = msgspec.defstruct("Inner", [("name", str), *names])
    outer = msgspec.defstruct("Outer", [("members", tuple[inner, ...]), *names])
    meet(from_values, {"members": [{"name": "x"}]}, outer)
"""


def test_threads_that_meet_a_type_at_once() -> None:
    """In a process of its own: what is wrong there is a crash."""
    done = subprocess.run(
        [sys.executable, "-c", RACE],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
