"""Images with keys from a broker: real registry, real broker, real mounts; only the VM is missing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import encryption, layers
from fixtures import registry as registries
from fixtures.broker import DENY_ALL, RunningBroker, running_broker
from fixtures.workload import KEY_NAME, KEY_URI, Workload
from simulators import registry as simulators

ROOT = Path(__file__).resolve().parents[2]

# In a mount namespace of its own: what is mounted goes with the process.
PROGRAM = """
import os, sys
from fixtures import direct
from sealrun_agent.attestation.choice import Choice
from sealrun_agent.container.surroundings import Order
from sealrun_agent.errors import AgentError, DialFailed, RunError
from sealrun_agent.image.store import Store
from sealrun_agent.policy import Policy
from sealrun_agent.provision import RegistryImages
from sealrun_protocol import init_data

directory, reference, text, hint, tee = sys.argv[1:]
phases = []
document = init_data.parse(text.encode()) if text else init_data.ABSENT
store = Store(directory)
images = RegistryImages(Policy(document, tee), Choice(directory), lambda: store)
order = Order("c1", reference, (hint,) if hint else (), direct.dial,
              lambda phase, text, done, total: phases.append(phase.value))
def fetch(digest):
    phases.append("cache")
    raise DialFailed(digest, refused=True)
if "OFFER" in os.environ:
    order = order._replace(fetch=fetch)
if reference.startswith("/"):
    order = order._replace(reference="", directory=reference, readonly=hint == "ro")
try:
    rootfs = images.prepare(order)
    print("digest", rootfs.image_digest)
    if reference.startswith("/"):
        open(f"{rootfs.path}/written", "w").close()
    print("files", " ".join(sorted(os.listdir(rootfs.path))))
    images.release("c1")
    print("left", os.path.ismount(rootfs.path), os.listdir(f"{directory}/containers"))
except AgentError as error:
    print("failed", error.phase.value, error.code.value)
print("phases", " ".join(dict.fromkeys(phases)))
"""

pytestmark = [pytest.mark.root, pytest.mark.registry]


@pytest.fixture
def broker(tmp_path: Path, workload: Workload) -> Iterator[RunningBroker]:
    with running_broker(tmp_path) as broker:
        broker.add_resource(KEY_NAME, workload.key.private.read_bytes())
        yield broker


def _prepare(
    directory: Path,
    image: str,
    init_data: bytes,
    *,
    hint: str = "",
    tee: str = "none",
    offer: bool = False,
) -> dict[str, str]:
    """What the program prints, by first word."""
    result = subprocess.run(
        [
            *("unshare", "--mount", sys.executable, "-c", PROGRAM),
            *(str(directory / "images"), image, init_data.decode(), hint, tee),
        ],
        env={"PYTHONPATH": f"{ROOT}/guest-agent:{ROOT}/tests", "PATH": os.environ["PATH"]}
        | ({"OFFER": ""} if offer else {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    lines = [line.partition(" ") for line in result.stdout.splitlines()]
    return {word: rest for word, _, rest in lines}


def _insecure(registry: registries.Registry) -> str:
    """Lines of [image]. Pins are the subject of the image service's own tests."""
    return f'insecure_registries = ["{registry.address}"]\ninsecure_unpinned_keys = true\n'


def test_an_encrypted_image_with_its_key_from_the_broker(
    tmp_path: Path, workload: Workload, broker: RunningBroker
) -> None:
    text = broker.init_data(keys=(KEY_URI,), more=_insecure(workload.registry))
    said = _prepare(tmp_path, workload.encrypted, text)
    assert said["digest"] == workload.encrypted.partition("@")[2]
    assert "secret" in said["files"].split()
    assert said["left"] == "False []"
    assert said["phases"].split() == ["pull", "decrypt", "attest"]


KEK = bytes(range(32))


@pytest.fixture
def for_coco() -> Iterator[tuple[str, str]]:
    """An image as CoCo's key provider makes it, in a registry: its address and the reference."""
    tar = layers.tar([layers.directory("etc"), layers.file("etc/file", b"secret")])
    blob, annotations = encryption.encrypted(
        layers.compress(tar, "gzip"),
        lambda text: {
            encryption.PACKET_KEYS: encryption.packet(text, KEK, "kbs:///default/key/kek")
        },
    )
    with simulators.serve() as simulator:
        reference = simulator.publish([tar], blobs=[blob], annotations=[annotations])
        yield simulator.address, reference


def test_an_image_that_was_encrypted_for_coco_runs_unchanged(
    tmp_path: Path, for_coco: tuple[str, str], broker: RunningBroker
) -> None:
    """The packet says which resource opens it; the init-data names the broker, and no key."""
    address, reference = for_coco
    more = f'insecure_registries = ["{address}"]\ninsecure_unpinned_keys = true\n'
    denied = _prepare(tmp_path, reference, broker.init_data(more=more))
    assert denied["failed"] == "attest key-not-found"
    broker.add_resource("default/key/kek", bytes(32))
    assert _prepare(tmp_path, reference, broker.init_data(more=more))["failed"] == (
        "decrypt key-wrong"
    )
    broker.add_resource("default/key/kek", KEK)
    said = _prepare(tmp_path, reference, broker.init_data(more=more))
    assert (said["files"], said["phases"]) == ("etc", "pull decrypt attest")


def _wrapped_by_us(options: bytes, broker: RunningBroker, directory: Path) -> str:
    """What `sealrun keyprovider` makes of a layer's private options, after it told the broker."""
    params = {"ec": {"Parameters": {}}, "optsdata": encryption.b64(options)}
    done = subprocess.run(
        [
            *(ROOT / "runtime/bin/sealrun", "keyprovider", "--keys", directory),
            *("--broker", broker.url, "--ca", broker.directory / "tls/ca.pem"),
            *("--admin-key", broker.directory / "admin/admin.key"),
        ],
        input=json.dumps({"op": "keywrap", "keywrapparams": params}).encode(),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return encryption.b64(bytes(json.loads(done.stdout)["keywrapresults"]["annotation"]))


def test_what_our_key_provider_wraps_is_opened_by_the_guest(
    tmp_path: Path, broker: RunningBroker
) -> None:
    policy = '[evidence]\ninsecure_sample = true\n[[resource]]\npath = "default/image-kek/*"\n'
    broker.write_policy(f'{policy}tee = ["sample"]\n')
    tar = layers.tar([layers.directory("etc"), layers.file("etc/file", b"secret")])
    blob, annotations = encryption.encrypted(
        layers.compress(tar, "gzip"),
        lambda text: {encryption.PACKET_KEYS: _wrapped_by_us(text, broker, tmp_path / "keys")},
    )
    with simulators.serve() as simulator:
        reference = simulator.publish([tar], blobs=[blob], annotations=[annotations])
        more = f'insecure_registries = ["{simulator.address}"]\ninsecure_unpinned_keys = true\n'
        said = _prepare(tmp_path, reference, broker.init_data(more=more))
    assert (said["files"], said["phases"]) == ("etc", "pull decrypt attest")


def test_a_plain_image_needs_no_broker(tmp_path: Path, workload: Workload) -> None:
    said = _prepare(tmp_path, workload.plain, b"", hint=workload.registry.address)
    assert "secret" in said["files"].split()


def test_the_operator_s_hint_counts_only_where_nobody_is_protected(
    tmp_path: Path, workload: Workload, broker: RunningBroker
) -> None:
    hint = workload.registry.address
    named = broker.init_data(more=f'allowed = ["{hint}/*"]\n')
    with_tee = _prepare(tmp_path, workload.plain, named, hint=hint, tee="snp")
    assert with_tee["failed"].split()[0] == "pull"
    of_a_tenant = _prepare(tmp_path, workload.plain, broker.init_data(), hint=hint)
    assert of_a_tenant["failed"].split()[0] == "pull"


@pytest.mark.parametrize("tee", ["tpm", "snp", "tdx"])
def test_with_a_tee_only_what_the_tenant_named_runs(
    tmp_path: Path, workload: Workload, broker: RunningBroker, tee: str
) -> None:
    hint = workload.registry.address
    insecure = f'insecure_registries = ["{hint}"]\n'
    for text in (b"", broker.init_data(more=insecure)):
        said = _prepare(tmp_path, workload.plain, text, hint=hint, tee=tee)
        assert (said["failed"], said["phases"]) == ("verify image-not-allowed", "")
    named = broker.init_data(more=f'{insecure}allowed = ["{workload.plain}"]\n')
    assert "secret" in _prepare(tmp_path, workload.plain, named, tee=tee)["files"].split()


@pytest.mark.parametrize(
    ("requirement", "failed"),
    [("reject", "verify image-not-signed"), ("insecureAcceptAnything", "")],
)
def test_with_a_tee_a_policy_may_name_what_runs(
    tmp_path: Path, workload: Workload, broker: RunningBroker, requirement: str, failed: str
) -> None:
    wish = f"""image_security_policy = '{{"default":[{{"type":"{requirement}"}}]}}'\n"""
    text = broker.init_data(more=_insecure(workload.registry) + wish)
    said = _prepare(tmp_path, workload.plain, text, tee="snp")
    assert said.get("failed", "") == failed
    assert ("files" in said) is not bool(failed)


@pytest.mark.parametrize(
    "case",
    [
        ({}, "", "decrypt key-not-configured"),
        ({"keys": (KEY_URI,), "sample": False}, "", "attest sample-not-allowed"),
        ({"keys": ("kbs:///default/key/other",)}, "", "attest key-not-found"),
        ({"keys": (KEY_URI,)}, 'allowed = ["registry.example/x"]\n', "verify image-not-allowed"),
    ],
)
def test_what_the_tenant_did_not_ask_for_does_not_happen(
    tmp_path: Path,
    workload: Workload,
    broker: RunningBroker,
    case: tuple[dict[str, Any], str, str],
) -> None:
    members, more, failed = case
    text = broker.init_data(**members, more=_insecure(workload.registry) + more)
    said = _prepare(tmp_path, workload.encrypted, text)
    assert said["failed"] == failed
    assert os.listdir(tmp_path / "images/layers") == []


def test_a_broker_that_denies(tmp_path: Path, workload: Workload, broker: RunningBroker) -> None:
    broker.write_policy(DENY_ALL)
    text = broker.init_data(keys=(KEY_URI,), more=_insecure(workload.registry))
    assert _prepare(tmp_path, workload.encrypted, text)["failed"] == "attest evidence-refused"


def test_an_encrypted_image_without_a_broker(tmp_path: Path, workload: Workload) -> None:
    text = (
        'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'
        f"\"sealrun.toml\" = '''\n[image]\n{_insecure(workload.registry)}"
        f"decryption_keys = [\"{KEY_URI}\"]\n'''\n"
    )
    said = _prepare(tmp_path, workload.encrypted, text.encode())
    assert said["failed"] == "attest broker-not-configured"


@pytest.mark.parametrize("access", ["rw", "ro"])
def test_a_root_that_the_host_shares_and_one_that_stays_as_it_is(
    tmp_path: Path, access: str
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").touch()
    said = _prepare(tmp_path, str(shared), b"", hint=access)
    assert said["files"] == "file written"
    assert (said["digest"], said["phases"], said["left"]) == ("", "", "False []")
    assert (shared / "written").exists() == (access == "rw")


@pytest.mark.parametrize("insist", [False, True])
def test_a_tenant_may_insist_on_the_registry(
    tmp_path: Path, workload: Workload, broker: RunningBroker, insist: bool
) -> None:
    """The host is then not told which blobs are wanted."""
    more = f'{_insecure(workload.registry)}allowed = ["{workload.registry.address}/*"]\n'
    more += f"insist_on_registry = {str(insist).lower()}\n"
    said = _prepare(tmp_path, workload.plain, broker.init_data(more=more), offer=True)
    assert said["digest"] == workload.plain.partition("@")[2]
    assert ("cache" in said["phases"].split()) is not insist
