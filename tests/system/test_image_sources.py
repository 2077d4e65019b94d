"""Where images come from and who vouches for them, in real VMs: what components do, the guest image can."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fixtures import layers, signing, traces
from fixtures import podman as podmans
from fixtures import registry as registries
from fixtures import workload as workloads
from fixtures.signing import OPENPGP, Gpg, payload, pem, sign
from simulators import proxy as proxies
from simulators.registry import Simulator

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]

KEY, OTHER = signing.ecdsa_key(), signing.ecdsa_key()
NAME = "images.example/demo/image"


@dataclass
class World:
    """An image of two signatures. mirror: a real registry behind TLS, which has the image; proxy: speaks
    TLS and wants a password, leads there; registry: has the signatures alone."""

    mirror: registries.Registry
    proxy: proxies.Proxy
    registry: Simulator
    authorities: str
    gpg: Gpg
    digest: str

    def annotations(self, *keys: bytes) -> workloads.Annotations:
        """keys: sigstore's, each of which has to have signed, beside gpg's."""
        data = base64.b64encode(self.gpg.public()).decode()
        needed: list[dict[str, Any]] = [
            {"type": "signedBy", "keyType": "GPGKeys", "keyData": data},
            *(
                {
                    "type": "sigstoreSigned",
                    "keyData": base64.b64encode(key).decode(),
                    "signedIdentity": {"type": "matchRepository"},
                }
                for key in keys
            ),
        ]
        policy = {
            "default": [{"type": "reject"}],
            "transports": {"docker": {"images.example": needed}},
        }
        return workloads.open_annotations(
            f"{NAME}:1",
            self.registry.address,
            f'allowed = ["{NAME}"]',
            f'ca_certificates = """{self.authorities}"""',
            f'image_security_policy = """{json.dumps(policy)}"""',
            "[image.signature_lookaside]",
            f'"images.example" = "http://{self.registry.address}/sigs"',
            "[image.image_pull_proxy]",
            f'https_proxy = "https://{registries.CREDENTIALS}@{self.proxy.address}"',
            "[[image.registry_config.registry]]",
            f'prefix = "images.example/demo"\nlocation = "{self.registry.address}/demo"',
            "insecure = true",
            "[[image.registry_config.registry.mirror]]",
            f'location = "{self.mirror.address}/mirrored"',
        )


@pytest.fixture
def world(tmp_path: Path, simulator: Simulator) -> Iterator[World]:
    certificate = registries.certificate(tmp_path / "proxy", authority="proxy CA")
    certified = registries.certificate(tmp_path / "mirror")
    layout = tmp_path / "layout"
    layers.write_layout(layout, [workloads.busybox_tar()])
    with (
        registries.serve(tmp_path / "registry", certificate=certified) as mirror,
        proxies.serve(registries.CREDENTIALS, certificate) as proxy,
        signing.gpg(tmp_path / "gpg") as gpg,
    ):
        digest = registries.push(layout, mirror, "mirrored/image:1")
        signed = payload(NAME, digest)
        signing.attach(simulator, digest, [(signed, sign(KEY, signed))])
        simple = payload(f"{NAME}:1", digest, OPENPGP, optional={})
        signing.lookaside(simulator, digest, [gpg.sign(simple)])
        both = certified.authority + certificate.authority
        yield World(mirror, proxy, simulator, both, gpg, digest)


def test_a_signed_image_of_a_mirror_behind_a_proxy(podman: podmans.Podman, world: World) -> None:
    """gpgv, its libraries, TLS within TLS, CAs of the tenant: all is in the guest image."""
    ended = podman.run(["cat", "/secret"], world.annotations(pem(KEY)))
    assert (ended.status, ended.stdout) == (0, workloads.SECRET), ended.stderr
    basic = base64.b64encode(registries.CREDENTIALS.encode()).decode()
    assert set(world.proxy.asked) == {(f"CONNECT {world.mirror.address}", f"Basic {basic}")}
    assert world.mirror.requests("/v2/mirrored/image/blobs/") == 2  # configuration and layer
    asked = "\n".join(world.registry.paths())
    assert f"/sigs/demo/image@{world.digest.replace(':', '=')}/signature-1" in asked
    assert f"/manifests/{world.digest.replace(':', '-')}.sig" in asked
    assert f"/manifests/{world.digest}" not in asked


def test_an_image_without_one_of_its_signatures(podman: podmans.Podman, world: World) -> None:
    """Both have to be there; nothing of the image's content is fetched where one is not."""
    ended = podman.run(["true"], world.annotations(pem(KEY), pem(OTHER)))
    (line,) = ended.stderr.strip().splitlines()
    assert ended.status == 126
    assert " verify: " in line
    assert f"image {NAME}:1 is {world.digest}: the image security policy refuses it" in line
    assert "it is not by the policy's key" in line
    assert registries.CREDENTIALS.partition(":")[2] not in line
    assert world.mirror.requests("/blobs/") == 0
    for container in podman.ids():
        traces.wait_until_gone(container, podmans.STATE_ROOT)
