"""What the memory of the agent holds of an image's keys when the image is there: as its containers could
find it if they broke out, and as a core dump would have it.

The real image service in a process of its own, against a real registry and a real broker.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import memory
from fixtures.broker import running_broker
from fixtures.workload import KEY_NAME, KEY_URI, Workload

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from fixtures import direct
from sealrun_agent.attestation.choice import Choice
from sealrun_agent.container.surroundings import Order
from sealrun_agent.image.store import Store
from sealrun_agent.policy import Policy
from sealrun_agent.provision import RegistryImages
from sealrun_protocol import init_data

directory, reference, text = sys.argv[1:]
policy = Policy(init_data.parse(text.encode()))
images = RegistryImages(policy, Choice("/nonexistent"), lambda: Store(directory))
rootfs = images.prepare(Order("c1", reference, (), direct.dial, lambda *_: None))
content = open(f"{rootfs.path}/secret", "rb").read()
print("ready", flush=True)
sys.stdin.read()
images.release("c1")
"""

pytestmark = [pytest.mark.root, pytest.mark.registry]


@pytest.fixture
def agent(tmp_path: Path, workload: Workload) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that pulled and decrypted the image."""
    with running_broker(tmp_path) as broker:
        broker.add_resource(KEY_NAME, workload.key.private.read_bytes())
        address, image = workload.registry.address, workload.encrypted
        more = f'insecure_registries = ["{address}"]\nallowed = ["{image}"]\n'
        text = broker.init_data(keys=(KEY_URI,), more=more).decode()
        process = subprocess.Popen(
            [
                *("unshare", "--mount", sys.executable, "-c", PROGRAM),
                *(str(tmp_path / "images"), image, text),
            ],
            env={"PYTHONPATH": f"{ROOT}/guest-agent:{ROOT}/tests", "PATH": os.environ["PATH"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with process:
            yield process
        assert process.returncode == 0


def test_the_key_s_text_and_the_layers_keys_are_gone(
    agent: "subprocess.Popen[bytes]", workload: Workload
) -> None:
    assert agent.stdout is not None
    assert agent.stdout.readline() == b"ready\n"
    pem = workload.key.private.read_bytes()
    lines = pem.splitlines()[1:-1]
    wiped = {"text of the private key": lines[len(lines) // 2]}
    wiped |= {
        f"key of layer {number}": key
        for number, key in memory.layer_keys(workload.encrypted, pem).items()
    }
    found = memory.find(agent.pid, list(wiped.values()))
    assert [name for name, secret in wiped.items() if secret in found] == []
    # The search works: what the process was told on its command line is there.
    assert memory.find(agent.pid, [b"decryption_keys"])
