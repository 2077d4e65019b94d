"""Pods with nothing simulated but the hypervisor: several containers in one VM, in the order and with
the annotations of each engine; and that nothing is left of them, however they end."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from component import test_sandbox_on_simulator as alone
from component.test_sandbox_on_simulator import processes, wait_until
from fixtures import netns, oci, pods
from sealrun_protocol import init_data

pytestmark = pytest.mark.root

program, runtime = alone.program, alone.runtime  # fixtures

FOREVER = "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done"


@pytest.fixture
def make(runtime: oci.Runtime, tmp_path: Path) -> Iterator[Callable[..., pods.Pod]]:
    """make(engine): a pod of which nothing exists yet, but its network where CRI makes one."""
    with netns.empty() as network:

        def pod(engine: pods.Engine, **members: object) -> pods.Pod:
            if engine in (pods.CRIO, pods.CONTAINERD):
                members["network"] = network.path
            return pods.Pod(runtime, engine, tmp_path, tmp_path, **members)

        yield pod


@pytest.fixture(params=pods.ENGINES, ids=lambda engine: engine.name)
def pod(request: pytest.FixtureRequest, make) -> pods.Pod:
    """A pod of each engine's."""
    return make(request.param)


@pytest.fixture
def podman(make) -> pods.Pod:
    return make(pods.PODMAN)


def exit_code(runtime: oci.Runtime, container: str) -> str:
    state = runtime.wait_for(container, "stopped")
    code: str = state["annotations"]["io.sealrun.exit-code"]
    return code


def exit_reason(runtime: oci.Runtime, container: str) -> str:
    return str(runtime.wait_for(container, "stopped")["annotations"]["io.sealrun.exit-reason"])


def assert_gone(pod: pods.Pod) -> None:
    """Nothing is left but what the fixture looks for, too: no directory, no process."""
    assert list(pod.runtime.root.iterdir()) == []
    wait_until(lambda: not processes(pod.runtime))


def test_a_pod_has_one_vm(pod: pods.Pod) -> None:
    runtime = pod.runtime
    pod.up()
    pod.run("a", "echo a; sleep 1000")
    pod.run("b", "echo b; exit 7")
    assert exit_code(runtime, "b") == "7"
    assert pod.output("b") == "b\n"
    assert oci.alive(pod.vmm())
    states = [runtime.state(name) for name in ("pod", "a")]
    assert [state and state["status"] for state in states] == ["running", "running"]
    member = (runtime.state("a") or {})["pid"]
    for kind in ("net", "ipc", "uts"):
        places = {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in (pod.infra_pid, member)}
        assert len(places) == 1, "engines look at the stand-ins"
    listed = runtime("list", "--quiet").stdout.decode().split()
    assert listed == ["a", "b", "pod"]
    assert runtime("delete", "b").ok
    assert runtime("kill", "a", "KILL").ok
    assert exit_code(runtime, "a") == "137"
    assert runtime("delete", "a").ok
    assert oci.alive(pod.vmm()), "the pod is there as long as its infra container"
    assert runtime("kill", "pod", "15").ok
    assert exit_code(runtime, "pod") == "0"
    assert runtime("delete", "pod").ok
    assert_gone(pod)


@pytest.mark.parametrize(
    "order", [["pod", "a", "b"], ["a", "pod", "b"], ["b", "a", "pod"]], ids="-".join
)
def test_removal_in_any_order(podman: pods.Pod, order: list[str]) -> None:
    podman.up()
    podman.run("a", "sleep 1000")
    podman.run("b", "sleep 1000")
    vmm = podman.vmm()
    for number, name in enumerate(order):
        assert oci.alive(vmm)
        others = [podman.runtime.state(other) for other in order[number + 1 :]]
        assert [other and other["status"] for other in others] == ["running"] * len(others)
        assert podman.runtime("delete", "--force", name).ok
        assert podman.runtime.state(name) is None
    assert_gone(podman)


def test_the_last_member_keeps_the_vm_when_the_infra_container_ends(podman: pods.Pod) -> None:
    runtime = podman.runtime
    podman.up()
    podman.run("a", FOREVER)
    assert runtime("kill", "pod", "KILL").ok
    assert exit_code(runtime, "pod") == "137"
    assert runtime("delete", "pod").ok
    wait_until(lambda: podman.output("a") == "up\n")
    assert runtime("kill", "a", "TERM").ok
    assert exit_code(runtime, "a") == "3"
    assert runtime("delete", "a").ok
    assert_gone(podman)


def test_a_member_is_started_again_under_its_id(podman: pods.Pod) -> None:
    podman.up()
    vmm = 0
    for round_ in range(3):
        podman.run("a", f"echo {round_}; exit {round_}")
        vmm = vmm or podman.vmm()
        assert exit_code(podman.runtime, "a") == str(round_)
        assert podman.output("a") == f"{round_}\n"
        assert podman.runtime("delete", "--force", "a").ok
    assert podman.vmm() == vmm
    assert podman.runtime("delete", "--force", "pod").ok
    assert_gone(podman)


def test_a_pod_is_restarted_while_members_of_its_first_life_run(podman: pods.Pod) -> None:
    """`podman pod restart` begins with the infra container."""
    runtime = podman.runtime
    podman.up()
    podman.run("a", FOREVER)
    podman.run("b", FOREVER)
    assert runtime("kill", "pod", "TERM").ok
    assert runtime("delete", "--force", "pod").ok
    podman.infra_pid = 0
    podman.up()
    assert len(podman.places()) == 2
    for name in ("a", "b"):
        assert runtime("kill", name, "TERM").ok
        assert exit_code(runtime, name) == "3"
        assert runtime("delete", "--force", name).ok
        podman.run(name, FOREVER)
    assert len(podman.places()) == 1
    states = [runtime.state(name) for name in ("pod", "a", "b")]
    assert [state and state["status"] for state in states] == ["running"] * 3
    for name in ("a", "b", "pod"):
        assert runtime("delete", "--force", name).ok
    assert_gone(podman)


def test_members_share_what_the_engine_shares(pod: pods.Pod) -> None:
    """And what they see is the guest's, where they are together."""
    pod.share = ("ipc", "uts", "pid", "network")
    look = "for kind in ipc uts pid net; do ls -l /proc/self/ns/$kind; done; ps; sleep 1000"
    created = pod.create_infra(linux={"sysctl": {"kernel.shmmni": "99"}})
    assert created.ok, created.stderr
    assert pod.runtime("start", "pod").ok
    pod.run("a", look)
    pod.run("b", look + "&\ncat /proc/sys/kernel/shmmni; wait")
    wait_until(lambda: "99\n" in pod.output("b") and pod.output("b").count("sleep 1000") >= 2)
    kinds = [
        [line.split()[-1] for line in pod.output(name).splitlines() if " -> " in line]
        for name in ("a", "b")
    ]
    assert len(kinds[0]) == 4
    assert kinds[0] == kinds[1]
    for name in ("a", "b", "pod"):
        assert pod.runtime("delete", "--force", name).ok
    assert_gone(pod)


def test_without_an_infra_container_the_first_member_begins_and_the_last_ends(make) -> None:
    """CRI-O drops the infra container, unless told otherwise."""
    pod: pods.Pod = make(pods.CRIO, share=())
    pod.run("a", "echo a; sleep 1000")
    pod.run("b", "echo b; sleep 1000")
    vmm = pod.vmm()
    assert pod.runtime("delete", "--force", "a").ok
    assert oci.alive(vmm)
    pod.run("c", "exit 0")
    assert exit_code(pod.runtime, "c") == "0"
    assert pod.runtime("delete", "c").ok
    assert pod.runtime("kill", "b", "KILL").ok
    assert exit_code(pod.runtime, "b") == "137"
    wait_until(lambda: not oci.alive(vmm))
    assert pod.runtime("delete", "b").ok
    assert_gone(pod)


def test_members_that_come_at_once_get_one_vm(make) -> None:
    pod: pods.Pod = make(pods.CRIO, share=())
    names = ["a", "b", "c", "d"]
    bundles = {name: pod.bundle(name, "sleep 1000", pod.engine.member("pod")) for name in names}
    outcomes: dict[str, oci.Outcome] = {}

    def create(name: str) -> None:
        outcomes[name] = pod.runtime.create(bundles[name], name)

    threads = [threading.Thread(target=create, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(outcome.ok for outcome in outcomes.values()), outcomes
    assert len(pod.places()) == 1
    for name in names:
        assert pod.runtime("delete", "--force", name).ok
    assert_gone(pod)


def test_the_infra_container(podman: pods.Pod) -> None:
    """It runs nothing, and what can be asked of it is answered without a VM."""
    runtime = podman.runtime
    created = podman.create_infra()
    assert created.ok, created.stderr
    assert runtime("start", "pod").ok
    assert not any("cloud_hypervisor" in command for command in processes(runtime))
    assert runtime("kill", "pod", "0").ok
    assert runtime("kill", "pod", "WINCH").ok
    assert runtime("pause", "pod").ok
    assert (runtime.state("pod") or {})["status"] == "paused"
    assert runtime("resume", "pod").ok
    listed = runtime("ps", "--format", "json", "pod")
    assert listed.stdout.decode().strip() == f"[{podman.infra_pid}]"
    executed = runtime("exec", "pod", "/bin/true")
    assert executed.status == 255
    assert "the infra container of a pod runs nothing" in executed.stderr
    updated = runtime("update", "--memory", "100000000", "pod")
    assert updated.status == 1
    assert "there is nothing to update" in updated.stderr
    assert not runtime("delete", "pod").ok
    assert runtime("kill", "pod", "INT").ok
    assert exit_code(runtime, "pod") == "0"
    assert not runtime("kill", "pod", "TERM").ok
    assert runtime("delete", "pod").ok
    assert_gone(podman)


def test_each_member_has_its_own_verbs(podman: pods.Pod) -> None:
    runtime = podman.runtime
    podman.up()
    podman.run("a", "sleep 1000")
    podman.run("b", "sleep 1000")
    for name in ("a", "b"):
        executed = runtime("exec", name, "/bin/sh", "-c", f"echo in {name}; exit 5")
        assert (executed.status, executed.stdout) == (5, f"in {name}\n".encode())
    assert runtime("pause", "a").ok
    assert (runtime.state("a") or {})["status"] == "paused"
    assert runtime("exec", "b", "/bin/true").ok
    assert not runtime("exec", "a", "/bin/true").ok
    assert runtime("resume", "a").ok
    assert runtime("exec", "a", "/bin/true").ok
    for name in ("a", "b", "pod"):
        assert runtime("delete", "--force", name).ok
    assert_gone(podman)


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_member_that_cannot_be_made_takes_nothing_with_it(podman: pods.Pod) -> None:
    podman.up()
    podman.run("a", "sleep 1000")
    failed = podman.create("b", ["/nope"])
    assert failed.status == 1
    assert "/nope" in failed.stderr
    assert podman.runtime.state("b") is None
    assert (podman.runtime.state("a") or {})["status"] == "running"
    podman.run("b", "exit 4")
    assert exit_code(podman.runtime, "b") == "4"
    for name in ("b", "a", "pod"):
        assert podman.runtime("delete", "--force", name).ok
    assert_gone(podman)


def test_a_vm_that_does_not_boot_ends_the_pod(podman: pods.Pod) -> None:
    created = podman.create_infra(annotations={"test.simulator": "die=vm.boot"})
    assert created.ok, created.stderr
    assert podman.runtime("start", "pod").ok
    failed = podman.create("a", "true")
    assert failed.status == 1
    assert "cannot boot the VM" in failed.stderr
    assert "cannot boot the VM" in exit_reason(podman.runtime, "pod")
    assert podman.runtime("delete", "pod").ok
    assert_gone(podman)


def test_a_pod_whose_annotations_are_known_boots_with_its_infra_container(make) -> None:
    pod: pods.Pod = make(pods.CRIO)
    failed = pod.create_infra(annotations={"test.simulator": "refuse=vm.boot"})
    assert failed.status == 1
    assert "cannot boot the VM" in failed.stderr
    assert_gone(pod)


@pytest.mark.parametrize("victim", ["vmm", "shim"])
def test_the_pod_ends_as_a_whole(podman: pods.Pod, victim: str) -> None:
    runtime = podman.runtime
    podman.up()
    podman.run("a", "sleep 1000")
    podman.run("b", "sleep 1000")
    (place,) = podman.places()
    recorded = (runtime.root / place / "processes").read_text().splitlines()
    pids = {line.split()[0]: int(line.split()[1]) for line in recorded}
    stand_ins = [int((podman.bundles[name] / "pid").read_text()) for name in ("pod", "a", "b")]
    os.kill(pids[victim], signal.SIGKILL)
    for name in ("pod", "a", "b"):
        runtime.wait_for(name, "stopped")
    wait_until(lambda: not any(map(oci.alive, [*stand_ins, *pids.values()])))
    for name in ("a", "pod", "b"):
        assert runtime("delete", name).ok
    assert_gone(podman)


def test_a_stand_in_that_is_killed_ends_its_container_only(podman: pods.Pod) -> None:
    runtime = podman.runtime
    podman.up()
    podman.run("a", "sleep 1000")
    podman.run("b", "sleep 1000")
    os.kill(int((podman.bundles["a"] / "pid").read_text()), signal.SIGKILL)
    assert exit_reason(runtime, "a") == "its stand-in process was killed"
    assert (runtime.state("b") or {})["status"] == "running"
    assert len(runtime("exec", "b", "/bin/ps").stdout.splitlines()) >= 1
    for name in ("a", "b", "pod"):
        assert runtime("delete", "--force", name).ok
    assert_gone(podman)


def test_one_that_ends_while_another_is_seen_off(podman: pods.Pod) -> None:
    """The shim waits a moment for each stand-in to go; meanwhile the next container ends."""
    runtime = podman.runtime
    podman.up()
    for name in ("a", "b", "stays"):
        podman.run(name, "sleep 1000")
    slow = int((podman.bundles["a"] / "pid").read_text())
    os.kill(slow, signal.SIGSTOP)
    for name in ("a", "b"):
        assert runtime("kill", name, "KILL").ok
    assert exit_code(runtime, "b") == "137"
    assert runtime("delete", "--force", "a").ok
    assert runtime("delete", "--force", "b").ok
    assert runtime("exec", "stays", "/bin/true").ok
    (place,) = podman.places()
    assert "the shim broke" not in (runtime.root / place / "shim.log").read_text()
    podman.run("b", "exit 4")
    assert exit_code(runtime, "b") == "4"
    for name in ("b", "stays", "pod"):
        assert runtime("delete", "--force", name).ok
    assert_gone(podman)


def test_a_shim_that_was_stopped_does_not_hold_up_a_forced_delete(podman: pods.Pod) -> None:
    """The pod is lost then, with all that is in it."""
    podman.up()
    podman.run("a", "sleep 1000")
    (place,) = podman.places()
    recorded = (podman.runtime.root / place / "processes").read_text().splitlines()
    (shim,) = (int(line.split()[1]) for line in recorded if line.startswith("shim "))
    os.kill(shim, signal.SIGSTOP)
    assert podman.runtime("delete", "--force", "a").ok
    assert not oci.alive(shim)
    assert podman.runtime("delete", "--force", "pod").ok
    assert_gone(podman)


def test_other_init_data_is_refused(make) -> None:
    pod: pods.Pod = make(pods.CRIO, share=())
    head = 'version = "0.1.0"\nalgorithm = "sha256"\n\n[data]\n"sealrun.toml" = """\n'
    body = "[container]\ninsecure_any_process = true\n"
    first, second = (
        init_data.encode_annotation(f'{head}{body}# {number}\n"""\n'.encode()) for number in (1, 2)
    )
    pod.run("a", "sleep 1000", annotations={"io.sealrun.init-data": first})
    failed = pod.create("b", "true", annotations={"io.sealrun.init-data": second})
    assert failed.status == 1
    assert "the pod's VM was started with other init-data" in failed.stderr
    pod.run("c", "exit 0", annotations={"io.sealrun.init-data": first})
    for name in ("a", "c"):
        assert pod.runtime("delete", "--force", name).ok
    assert_gone(pod)


def test_a_container_that_stands_alone_is_no_pod(podman: pods.Pod) -> None:
    bundle = podman.bundle("alone", "sleep 1000", {})
    assert podman.runtime.create(bundle, "alone").ok
    podman.id = "alone"
    failed = podman.create("a", "true")
    assert failed.status == 1
    assert "that one stands alone, in a VM of its own" in failed.stderr
    assert podman.runtime.state("a") is None
    assert podman.runtime("delete", "--force", "alone").ok
    assert_gone(podman)


def test_a_pod_has_one_network(podman: pods.Pod) -> None:
    podman.up()
    podman.run("a", "sleep 1000")
    podman.share = ("ipc", "uts")
    failed = podman.create("b", "true")
    assert failed.status == 1
    assert "the containers of a pod have one network, that of its VM" in failed.stderr
    for name in ("a", "pod"):
        assert podman.runtime("delete", "--force", name).ok
    assert_gone(podman)


@pytest.mark.parametrize("kind", ["pid", "ipc", "uts"])
def test_namespaces_are_not_shared_between_vms(podman: pods.Pod, kind: str) -> None:
    podman.infra_pid, podman.share = os.getpid(), (kind,)
    bundle = podman.bundle("alone", "true", {})
    failed = podman.runtime.create(bundle, "alone")
    assert failed.status == 1
    assert f"cannot share the {kind} namespace /proc/{os.getpid()}/ns/{kind}" in failed.stderr
    assert "put both into one pod" in failed.stderr
