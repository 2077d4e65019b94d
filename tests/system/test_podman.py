"""What somebody with a Podman sees: `podman --runtime sealrun`, in real VMs."""

import hashlib
import os
import subprocess
import time

import pytest
from fixtures import podman as podmans
from fixtures import registry as registries
from fixtures import traces
from fixtures import workload as workloads
from sealrun_vmm import kvm
from sealrun_vmm.spec import Accelerator

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]


def test_an_encrypted_image_runs_and_no_plain_byte_is_on_the_host(
    podman: podmans.Podman,
    sealed_annotations: workloads.Annotations,
    registry: registries.Registry,
) -> None:
    script = "cat /secret; echo; cat >/dev/null; echo no >&2; exit 42"
    ended = podman.run(["/bin/sh", "-c", script], sealed_annotations, "-i", stdin=b"line\n")
    assert ended.status == 42, ended.stderr
    assert ended.stdout == workloads.SECRET + b"\n"
    assert "no\n" in ended.stderr
    places = ["/var/lib/containers", "/run/containers", "/run/sealrun", str(registry.storage)]
    found = subprocess.run(
        ["grep", "-rlaF", workloads.SECRET.decode(), *places], capture_output=True, text=True
    )
    assert found.stdout == "", "the secret was printed to the caller only"


@pytest.mark.parametrize("code", [0, 1, 125, 127, 255])
def test_exit_codes(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations, code: int
) -> None:
    ended = podman.run(["/bin/sh", "-c", f"exit {code}"], busybox_annotations)
    assert (ended.status, ended.stdout, ended.stderr) == (code, b"", "")


def test_death_by_signal_is_128_and_its_number(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    script = "/bin/sh -c 'kill -9 $$'; echo $?; exec /bin/sh -c 'kill -TERM $$; sleep 9'"
    ended = podman.run(["/bin/sh", "-c", script], busybox_annotations)
    assert b"137" in ended.stdout
    # As PID 1 of its namespace the program does not get the signal of its own that it did not ask
    # for: the shell goes on, as under runc.
    assert ended.status in (0, 143)


def test_standard_streams_are_exact(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    """Binary in and out beyond every window and pipe, end of input noticed, streams kept apart."""
    sent = os.urandom(3 * 1024 * 1024 + 17)
    script = "cat; seq 1 50000 >&2; exit 3"
    ended = podman.run(["/bin/sh", "-c", script], busybox_annotations, "-i", stdin=sent)
    assert ended.status == 3
    assert hashlib.sha256(ended.stdout).digest() == hashlib.sha256(sent).digest()
    assert ended.stderr == "".join(f"{number}\n" for number in range(1, 50001))


def test_the_container_is_what_podman_and_the_image_say(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    script = (
        "id -u; pwd; echo $MINE; hostname; cat /etc/hostname; echo; touch /denied || echo read-only; "
        "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"
    )
    ended = podman.run(
        ["/bin/sh", "-c", script],
        busybox_annotations,
        *("--env", "MINE=set", "--hostname", "boxed", "--read-only"),
    )
    assert ended.stderr.strip() in ("", "touch: /denied: Read-only file system"), ended.stderr
    lines = ended.stdout.decode().splitlines()
    assert lines[:-1] == ["0", "/", "set", "boxed", "boxed", "read-only"]
    if kvm.choose_accelerator() is Accelerator.TCG:
        assert lines[-1] == "acpi_pm", "a busy host makes another one run at any speed"


def test_a_plain_run_needs_no_annotation(
    podman: podmans.Podman,
    workload: workloads.Workload,
    operator_settings,
) -> None:
    """The reference comes from Podman's storage; plain http is the operator's word here."""
    operator_settings(f'[image]\ninsecure_registries = ["{workload.registry.address}"]\n')
    reference = f"{workload.registry.address}/test/plain:1"
    pulled = podman("pull", "--tls-verify=false", "--quiet", reference)
    assert pulled.status == 0, pulled.stderr
    try:
        ended = podman.run(["/bin/sh", "-c", "echo $FROM; uname -n"], {}, image=reference)
        assert ended.status == 0, ended.stderr
        assert ended.stdout.startswith(b"image\n")
    finally:
        podmans.remove_image(reference)


def test_detached_logs_kill_wait(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    script = "trap 'echo got-usr1' USR1; echo ready; while :; do sleep 0.1; done"
    container = podman.start(["/bin/sh", "-c", script], busybox_annotations)
    _wait_for_log(podman, container, "ready")
    assert podman("ps", "--quiet", "--no-trunc").stdout.decode().split().count(container) == 1
    assert podman("kill", "--signal", "USR1", container).status == 0
    _wait_for_log(podman, container, "got-usr1")
    assert podman("kill", container).status == 0
    assert podman("wait", container).stdout == b"137\n"
    assert podman.inspect(container, "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"
    assert podman("rm", container).status == 0
    traces.wait_until_gone(container, podmans.STATE_ROOT)


def test_stop_asks_first_and_then_kills(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    polite = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    deaf = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    first = podman.start(["/bin/sh", "-c", polite], busybox_annotations)
    second = podman.start(["/bin/sh", "-c", deaf], busybox_annotations)
    for container in (first, second):
        _wait_for_log(podman, container, "ready")
    assert podman("stop", "--time", "30", first).status == 0
    assert podman.inspect(first, "{{.State.ExitCode}}") == "7"
    assert "bye" in podman("logs", first).stdout.decode()
    assert podman("stop", "--time", "1", second).status == 0
    assert podman.inspect(second, "{{.State.ExitCode}}") == "137"


def test_a_container_is_started_again_under_its_id(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    """The second life has nothing of the first: the guest's file system is gone with its VM."""
    script = "ls /tmp; touch /tmp/first-life; exit 5"
    container = podman.create(["/bin/sh", "-c", script], busybox_annotations)
    for _ in range(2):
        ended = podman("start", "--attach", container)
        assert (ended.status, ended.stdout) == (5, b""), ended.stderr
    traces.wait_until_gone(container, podmans.STATE_ROOT)


@pytest.mark.parametrize("state", ["configured", "created", "running", "exited"])
def test_rm_force_in_each_state(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations, state: str
) -> None:
    script = "true" if state == "exited" else "sleep 1000"
    container = podman.create(["/bin/sh", "-c", script], busybox_annotations)
    if state == "created":
        initialised = podman("init", container)
        assert initialised.status == 0, initialised.stderr
    elif state in ("running", "exited"):
        started = podman("start", container)
        assert started.status == 0, started.stderr
    if state == "exited":
        podman("wait", container)
    expected = {"configured": "created", "created": "initialized"}.get(state, state)
    assert podman.inspect(container, "{{.State.Status}}") in (expected, state)
    removed = podman("rm", "--force", "--time", "0", container)
    assert removed.status == 0, removed.stderr
    traces.wait_until_gone(container, podmans.STATE_ROOT)


def test_top_shows_the_stand_in_and_nothing_of_the_host(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    container = podman.start(["/bin/sh", "-c", "sleep 1000"], busybox_annotations)
    lines = podman("top", container, "pid", "args").stdout.decode().splitlines()[1:]
    assert len(lines) == 1, lines


def _wait_for_log(podman: podmans.Podman, container: str, text: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while text not in podman("logs", container).stdout.decode():
        assert time.monotonic() < deadline, f"{text} is not in the log of {container}"
        time.sleep(0.2)
