"""Images that Debian's skopeo encrypted: from sources of every compression it reads, by both schemes it knows."""

from pathlib import Path

import pytest
from fixtures import layers
from fixtures import registry as registries
from fixtures.pulling import Puller
from sealrun_agent.errors import DecryptError
from sealrun_agent.image.pull import ImagePolicy
from sealrun_protocol.errors import ErrorCode

pytestmark = pytest.mark.registry

TAR = layers.tar([layers.file("secret", b"of the tenant" * 1000)])


@pytest.mark.parametrize("source", ["", "gzip", "zstd"])
@pytest.mark.parametrize("pushed", ["gzip", "zstd"])
def test_a_layer_that_was_compressed_anew_on_its_way(
    tmp_path: Path,
    plain_registry: registries.Registry,
    image_key: registries.KeyPair,
    source: str,
    pushed: str,
) -> None:
    """The digest in the wrapped key is then of a blob that nobody can see any more."""
    layout = tmp_path / "layout"
    layers.write_layout(layout, [TAR], compression=source)
    digest = registries.push(
        layout,
        plain_registry,
        f"test/anew:{source or 'plain'}-{pushed}",
        encrypt_for=[image_key],
        options=["--dest-compress-format", pushed],
    )
    reference = f"{plain_registry.address}/test/anew@{digest}"
    puller = Puller(tmp_path / "store", keys=[image_key.private.read_bytes()])
    pulled = puller(reference, ImagePolicy((plain_registry.address,), insecure_unpinned_keys=True))
    assert (Path(pulled.layers[0]) / "secret").read_bytes() == b"of the tenant" * 1000


def test_recipients_of_pkcs7(
    tmp_path: Path, plain_registry: registries.Registry, image_key: registries.KeyPair
) -> None:
    """skopeo's envelopes are for certificates; one is for both, beside a key that is wrapped by JWE."""
    layout = tmp_path / "layout"
    layers.write_layout(layout, [TAR])
    options, keys = [], [image_key]
    for name in ("one", "two"):
        keys.append(registries.key_pair(tmp_path, name))
        certificate = tmp_path / f"{name}.crt"
        request = ["openssl", "req", "-x509", "-key", str(keys[-1].private), "-subj", "/CN=a"]
        registries.run([*request, "-out", str(certificate)])
        options += ["--encryption-key", f"pkcs7:{certificate}"]
    name = "test/pkcs7:1"
    registries.push(layout, plain_registry, name, encrypt_for=[image_key], options=options)
    reference = f"{plain_registry.address}/{name}"
    policy = ImagePolicy((plain_registry.address,), insecure_unpinned_keys=True)
    for number, key in enumerate(keys):
        puller = Puller(tmp_path / str(number), keys=[key.private.read_bytes()])
        image = puller(reference, policy)
        assert (Path(image.layers[0]) / "secret").read_bytes() == b"of the tenant" * 1000
    stranger = registries.key_pair(tmp_path, "stranger").private.read_bytes()
    with pytest.raises(DecryptError) as caught:
        Puller(tmp_path / "stranger", keys=[stranger])(reference, policy)
    assert caught.value.code is ErrorCode.KEY_WRONG
