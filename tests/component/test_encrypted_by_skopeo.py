"""Images that Debian's skopeo encrypted, from sources of every compression it reads."""

from pathlib import Path

import pytest
from fixtures import layers
from fixtures import registry as registries
from fixtures.pulling import Puller
from sealrun_agent.image.pull import ImagePolicy

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
