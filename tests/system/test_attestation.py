"""A measured boot, a real quote, a key: the whole way from the VM's TPM to the tenant's broker."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fixtures import kbs, memory, oci, traces
from fixtures import podman as podmans
from fixtures import registry as registries
from fixtures import workload as workloads
from fixtures.broker import LAUNCHER, RunningBroker, command, running_broker
from sealrun_agent.attestation import tee_key
from sealrun_agent.attestation.report_data import report_data
from sealrun_broker import base64url

pytestmark = [pytest.mark.vm, pytest.mark.tpm, pytest.mark.podman, pytest.mark.root]

POLICY = """\
[[resource]]
path = "default/key/*"
tee = ["tpm"]
"""
SESSION_SECONDS = 20
SAY = "echo a word; exec sleep 1000"
VISITOR = "attest-visitor"
SEALED = "attest-sealed"


# Random, so that neither gzip nor chance can make anything of it.
MARKER = os.urandom(4096)


@pytest.fixture(scope="module")
def workload(
    tmp_path_factory: pytest.TempPathFactory, registry: registries.Registry
) -> workloads.Workload:
    """An image of this module's own, with the marker in it."""
    directory = tmp_path_factory.mktemp("marked")
    return workloads.publish(directory, registry, registries.key_pair(directory), MARKER)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every VM of this module has a TPM, of one identity."""
    path = Path("/etc/sealrun/sealrun.toml.d/60-attestation.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = tmp_path_factory.mktemp("tpm")
    path.write_text(f'tee = "tpm"\n[vm]\ntpm_state = "{state}"\n')
    yield
    path.unlink()


@pytest.fixture(scope="module")
def runtime(settings: None) -> Iterator[oci.Runtime]:
    binary = shutil.which("sealrun")
    assert binary
    runtime = oci.Runtime("sealrun", binary, podmans.STATE_ROOT)
    yield runtime
    runtime.clean()


Bundle = Callable[[str, workloads.Annotations], Path]


@pytest.fixture
def bundle(tmp_path: Path, rootfs: Path) -> Bundle:
    """bundle(script, annotations): a bundle's path."""
    return lambda script, annotations: oci.bundle(tmp_path / "bundle", rootfs, script, annotations)


class Attested(NamedTuple):
    """What `sealrun attest` said: its exit status, and its verdict or the evidence file."""

    status: int
    said: Any
    error: str


def attest(container: str, *options: str) -> Attested:
    done = subprocess.run(
        ["sealrun", "attest", *options, container], capture_output=True, text=True, timeout=120
    )
    return Attested(done.returncode, json.loads(done.stdout or "null"), done.stderr)


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The visitor's bundle."""
    return tmp_path_factory.mktemp("visitor") / "bundle"


@pytest.fixture(scope="module")
def visitor(
    runtime: oci.Runtime,
    rootfs: Path,
    workload: workloads.Workload,
    visited: Path,
) -> str:
    """A running container of a plain image, in a VM of this host: its tenant named image and program,
    and left nothing else to the host."""
    bundle = oci.bundle(visited, rootfs, SAY, _strict(workload))
    created = runtime.create(bundle, VISITOR)
    assert created.ok, created.stderr
    assert runtime("start", VISITOR).ok
    return VISITOR


def _strict(workload: workloads.Workload) -> workloads.Annotations:
    text = (
        'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"sealrun.toml" = \'\'\'\n'
        f'[image]\ninsecure_registries = ["{workload.registry.address}"]\n'
        f'allowed = ["{workload.plain}"]\n'
        f'[container]\ncommands = [["/bin/sh", "-c", "{SAY}"]]\n\'\'\'\n'
    )
    return workloads.annotations(workload.plain, text.encode())


def test_what_the_tenant_did_not_leave_to_the_host(
    runtime: oci.Runtime, visitor: str, visited: Path
) -> None:
    """Neither output nor another program, and the event log of the evidence says so later on."""
    executed = runtime("exec", visitor, "true")
    assert not executed.ok
    assert "the tenant's policy denies this request" in executed.stderr
    assert (visited / "stdout").read_bytes() == b""
    state = runtime.state(visitor)
    assert state is not None
    assert state["status"] == "running"


@pytest.fixture(scope="module")
def identity(runtime: oci.Runtime) -> dict[str, list[str]]:
    """Reference values of this host's VMs, computed without booting one: PCRs 2 to 7 and 9, and the
    attestation key."""
    measured = runtime("measure", "--attestation-key", "--format", "broker")
    assert measured.ok, measured.stderr
    values: dict[str, list[str]] = json.loads(measured.stdout)
    assert {"trusted_aks", "tpm_pcr04", "tpm_pcr09"} < set(values)
    return values


@pytest.fixture(scope="module")
def tpm_broker(
    tmp_path_factory: pytest.TempPathFactory,
    workload: workloads.Workload,
    identity: dict[str, list[str]],
) -> Iterator[RunningBroker]:
    """A key broker that knows this host's VMs."""
    options = ("--session-seconds", str(SESSION_SECONDS))
    place = tmp_path_factory.mktemp("tpm-broker")
    with running_broker(place, *options, policy=POLICY) as running:
        running.add_resource(workloads.KEY_NAME, workload.key.private.read_bytes())
        for name, values in identity.items():
            command("add-reference", str(running.directory), name, *values)
        yield running


@pytest.fixture(scope="module")
def sealed(tpm_broker: RunningBroker, workload: workloads.Workload) -> workloads.Annotations:
    return workloads.sealed_annotations(
        workload.encrypted, workload.registry.address, tpm_broker, sample=False
    )


def test_evidence_of_a_running_sandbox(
    visitor: str, identity: dict[str, list[str]], tmp_path: Path
) -> None:
    references = tmp_path / "references.json"
    references.write_text(json.dumps(identity))
    found = attest(visitor, "--reference-values", str(references))
    assert found.status == 0, found
    assert found.said["accepted"] is True
    assert found.said["status"] == "affirming"
    claims = found.said["claims"]
    assert claims["pcr08"] != "00" * 32
    assert {entry["index"] for entry in claims["uefi_event_logs"]} >= {0, 4, 9, 13}
    said = [e["details"]["string"] for e in claims["uefi_event_logs"] if e["index"] == 13]
    assert any("PullImage" in event for event in said)
    assert 'sealrun Decision {"allowed":"false","request":"exec"}' in said
    references.write_text(json.dumps(identity | {"tpm_pcr09": ["00" * 32]}))
    found = attest(visitor, "--reference-values", str(references))
    assert (found.status, found.said["genuine"], found.said["accepted"]) == (1, True, False)
    assert "PCR 9 is not among the reference values tpm_pcr09" in found.said["reasons"]


def test_an_evidence_file_is_verified_elsewhere(visitor: str, tmp_path: Path) -> None:
    file, nonce = tmp_path / "evidence.json", "00112233445566778899aabbccddeeff"
    found = attest(visitor, "--nonce", nonce, "--output", str(file), "--no-verify")
    assert (found.status, found.said) == (0, None)
    for other, genuine in ((nonce, True), (nonce[::-1], False)):
        done = subprocess.run(
            [LAUNCHER, "verify", file, "--nonce", other, "--insecure-any-init-data"],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, json.loads(done.stdout)["genuine"]) == (1, genuine)


SEALED_FOR = "a word that only the guest may read"
PRINT = "cat /secret; echo; echo $FROM_VAULT; echo $FROM_ENVELOPE; sleep 1000"
RESOURCE = "http://127.0.0.1:8006/cdh/resource/default/key/word"


@pytest.fixture(scope="module")
def sealed_secrets(
    tpm_broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Two variables for a container, whose values are in the broker and in themselves."""
    place = tmp_path_factory.mktemp("signer")
    command("seal-key", str(place / "signer"))
    (place / "key").write_bytes(bytes(range(32)))
    for name, content in (
        ("signer", (place / "signer-public.json").read_bytes()),
        ("sealing", (place / "key").read_bytes()),
        ("word", SEALED_FOR.encode()),
    ):
        tpm_broker.add_resource(f"default/key/{name}", content)
    seal = ("seal", "--signer", str(place / "signer-private.json"))
    seal += ("--kid", "kbs:///default/key/signer")
    envelope = ("--key", str(place / "key"), "--key-id", "kbs:///default/key/sealing", "-")
    vault = command(*seal, "--place", "FROM_VAULT", "vault", "kbs:///default/key/word")
    return [
        f"FROM_VAULT={vault.strip()}",
        f"FROM_ENVELOPE={command(*seal, 'envelope', *envelope, stdin=SEALED_FOR.encode()).strip()}",
    ]


class Sealed(NamedTuple):
    """A running container of the encrypted image, in a VM that proved what it is."""

    runtime: oci.Runtime
    broker: RunningBroker
    init_data: bytes
    stdout: Path

    def ask(self, url: str) -> tuple[bool, bytes]:
        """What the agent says to the container: whether it was given something, and what."""
        done = self.runtime("exec", SEALED, "wget", "-q", "-O", "-", url)
        return done.ok, done.stdout

    def refusal(self) -> str:
        """Why the broker did not give the word, as its log says."""
        given, _ = self.ask(RESOURCE)
        assert not given
        last = self.broker.log().splitlines()[-1]
        assert " get default/key/word " in last
        return last.partition(" get default/key/word ")[2]


@pytest.fixture(scope="module")
def container(
    runtime: oci.Runtime,
    tpm_broker: RunningBroker,
    workload: workloads.Workload,
    sealed_secrets: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Sealed:
    wishes = f'{workloads.ANY_PROCESS}[workload]\napi = ["resource", "attestation"]\n'
    more = f'insecure_registries = ["{workload.registry.address}"]\nallowed = ["{workload.encrypted}"]\n{wishes}'
    text = tpm_broker.init_data(keys=(workloads.KEY_URI,), sample=False, more=more)
    given = workloads.annotations(workload.encrypted, text)
    env = ["PATH=/bin", *sealed_secrets]
    place = tmp_path_factory.mktemp("sealed") / "bundle"
    rootfs = oci.busybox_tree(place.with_name("rootfs"))
    oci.bundle(place, rootfs, PRINT, given, env=env)
    created = runtime.create(place, SEALED)
    assert created.ok, created.stderr
    assert runtime("start", SEALED).ok
    return Sealed(runtime, tpm_broker, text, place / "stdout")


def test_the_key_is_given_to_a_vm_that_proves_what_it_is(container: Sealed) -> None:
    """The image was opened, and the sealed variables with it."""
    wanted = [workloads.SECRET, SEALED_FOR.encode(), SEALED_FOR.encode()]
    deadline = time.monotonic() + 60
    while len(lines := container.stdout.read_bytes().splitlines()) < len(wanted):
        assert time.monotonic() < deadline, lines
        time.sleep(0.1)
    assert lines == wanted
    assert "get default/key/workload ok tee=tpm" in container.broker.log()
    config = (podmans.STATE_ROOT / SEALED / "oci.json").read_bytes()
    assert SEALED_FOR.encode() not in config


def test_the_host_has_neither_keys_nor_plain_content(
    container: Sealed, workload: workloads.Workload
) -> None:
    """Not in the memory of its processes while the container runs and somebody executes a program in
    it, not in files. Only the VM has them; without a TEE its memory shows that the search works."""
    pem = workload.key.private.read_bytes()
    lines = pem.splitlines()[1:-1]
    der = base64.b64decode(b"".join(lines))
    kept = [MARKER[1000:1064], lines[len(lines) // 2], *(der[at : at + 32] for at in (400, 800))]
    keys = memory.layer_keys(workload.encrypted, pem).values()
    kept += [form for key in keys for form in (key, key.hex().encode(), base64.b64encode(key))]
    argv = [container.runtime.binary, "--root", str(podmans.STATE_ROOT), "exec", SEALED]
    with subprocess.Popen(
        [*argv, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as executing:
        assert executing.stdin is not None
        assert executing.stdout is not None
        executing.stdin.write(b"up\n")
        executing.stdin.flush()
        assert executing.stdout.readline() == b"up\n"
        machines = traces.processes(SEALED, "qemu-system")
        state = container.runtime.state(SEALED)
        assert state is not None
        others = {*traces.processes(SEALED, ""), executing.pid, state["pid"]} - {*machines}
        assert len(others) >= 4, "command line, shim, stand-in, TPM"
        found = {pid: memory.find(pid, kept) for pid in sorted(others)}
        assert not any(found.values()), found
        executing.stdin.close()
    for place in (podmans.STATE_ROOT, Path("/var/cache/sealrun/images"), Path("/var/log")):
        assert memory.in_files(place, kept) == []
    (machine,) = machines
    disks = memory.scratch_disks(machine)
    assert any(disk.stat().st_blocks for disk in disks)
    assert container.runtime("exec", SEALED, "sha256sum", "/marker").ok
    assert not any(memory.in_file(disk, kept) for disk in disks)
    assert memory.find(machine, kept[:1]) == kept[:1]


def test_the_workload_asks_for_itself(container: Sealed) -> None:
    assert container.ask(RESOURCE) == (True, SEALED_FOR.encode())
    given, info = container.ask("http://127.0.0.1:8006/info")
    assert given
    assert json.loads(info)["tee"] == "tpm"


@contextmanager
def reference(broker: RunningBroker, name: str, *values: str) -> Iterator[None]:
    """Another reference value, for the time of a block."""
    path = broker.directory / "reference-values.json"
    before = path.read_bytes()
    command("add-reference", str(broker.directory), name, *values)
    yield
    path.write_bytes(before)


@contextmanager
def policy(broker: RunningBroker, *lines: str) -> Iterator[None]:
    """One more condition, for the time of a block."""
    broker.write_policy(POLICY + "\n".join(lines) + "\n")
    yield
    broker.write_policy(POLICY)


def test_what_is_taken_away_is_gone_at_once(
    container: Sealed, workload: workloads.Workload
) -> None:
    """A wrong PCR, an attestation key that is trusted no more, another init-data, a key for another
    image, a revoked resource: each with the reason, and each time the key is given again after it.

    The programs that ask have the container's environment, and its values need no broker anew."""
    broker, image = container.broker, workload.encrypted.partition("@")[2]
    with reference(broker, "tpm_pcr09", "00" * 32):
        assert "PCR 9 is not among the reference values tpm_pcr09" in container.refusal()
    with reference(broker, "trusted_aks"):
        assert "there are no reference values trusted_aks" in container.refusal()
    with reference(broker, "trusted_aks", "AAAA"):
        assert "the attestation key is not among" in container.refusal()
    with policy(broker, f'init_data = ["{"0" * 64}"]'):
        assert "its init-data is another one" in container.refusal()
    with policy(broker, f'images = ["sha256:{"0" * 64}"]'):
        assert "it pulled another image" in container.refusal()
    digest = hashlib.sha256(container.init_data).hexdigest()
    with policy(broker, f'init_data = ["{digest}"]', f'images = ["{image}"]'):
        assert container.ask(RESOURCE)[0]
    broker.delete_resource("default/key/word")
    assert container.refusal().startswith("not-found")
    broker.add_resource("default/key/word", SEALED_FOR.encode())
    assert container.ask(RESOURCE)[0]


def test_evidence_serves_once(container: Sealed) -> None:
    """A handshake by hand with the TPM's evidence: good once, worth nothing when it is replayed."""
    broker, key = container.broker, tee_key.generate()
    challenge = kbs.auth(broker, tee="tpm")

    def body(nonce: str) -> dict[str, Any]:
        return {
            "init-data": {"format": "toml", "body": container.init_data.decode()},
            "runtime-data": {"nonce": nonce, "tee-pubkey": key.public},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        }

    nonce = challenge.json["nonce"]
    data = base64.b64encode(report_data(nonce, key.public)).decode()
    query = urllib.parse.urlencode({"runtime_data": data, "encoding": "base64"})
    given, text = container.ask(f"http://127.0.0.1:8006/aa/evidence?{query}")
    assert given
    evidence = json.loads(text)
    attested = kbs.attest(broker, challenge.cookie, body(nonce))
    assert attested.status == 200
    for own, said in (
        (False, "the nonce is not that of this session"),
        (True, "is not the hash of this session's nonce and key"),
    ):
        other = kbs.auth(broker, tee="tpm")
        answer = kbs.attest(broker, other.cookie, body(other.json["nonce"] if own else nonce))
        assert (answer.status, answer.error) == (401, "AttestationError")
        assert said in answer.json["detail"]
    _stale(broker, attested.json["token"])


def _stale(broker: RunningBroker, token: str) -> None:
    """A token of the VM's serves as bearer, and no longer than it says."""
    bearer = {"Authorization": f"Bearer {token}"}
    assert kbs.ask(broker, "GET", "/kbs/v0/resource/default/key/word", **bearer).status == 200
    claims = json.loads(base64url.decode(token.split(".")[1]))
    time.sleep(max(0.0, claims["exp"] - time.time()) + 1)
    answer = kbs.ask(broker, "GET", "/kbs/v0/resource/default/key/word", **bearer)
    assert (answer.status, answer.error) == (401, "TokenVerifierError")
    assert "the token has expired" in answer.json["detail"]


def test_a_session_that_ended_is_renewed_by_the_guest(container: Sealed) -> None:
    before = container.broker.log().count(" attest ok ")
    time.sleep(SESSION_SECONDS + 2)
    assert container.ask(RESOURCE)[0]
    assert container.broker.log().count(" attest ok ") > before


def test_a_vm_that_booted_something_else_gets_nothing(
    runtime: oci.Runtime,
    bundle: Bundle,
    sealed: workloads.Annotations,
    tpm_broker: RunningBroker,
    identity: dict[str, list[str]],
) -> None:
    """A wrong PCR: the broker expects another initrd."""
    command("add-reference", str(tpm_broker.directory), "tpm_pcr09", "00" * 32)
    try:
        refused = runtime.create(bundle("cat /secret", sealed), "attest-refused")
    finally:
        command("add-reference", str(tpm_broker.directory), "tpm_pcr09", *identity["tpm_pcr09"])
    assert not refused.ok
    assert "attest: the key broker's policy denies this VM the key; " in refused.stderr
    assert "PCR 9 is not among the reference values tpm_pcr09" in tpm_broker.log()
    traces.wait_until_gone("attest-refused", podmans.STATE_ROOT)
