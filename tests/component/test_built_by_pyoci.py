"""An image that another program built, on a base of ours, and pushed: pyoci, over TLS."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import layers
from fixtures import registry as registries
from fixtures.pulling import Puller
from sealrun_agent.image.pull import ImagePolicy

pytestmark = pytest.mark.registry

# It has no option for a CA, and takes the one that OpenSSL's variable names.
BUILD = """
import json, sys
from pyoci import BuildConfig, ImageBuilder
builder = ImageBuilder(BuildConfig(use_cache=False, **json.loads(sys.argv[1])))
builder.build()
builder.push(show_progress=False)
print(builder.manifest_digest)
"""


def test_an_image_that_pyoci_built_and_pushed(
    tmp_path: Path, tls_registry: registries.Registry
) -> None:
    base = tmp_path / "base"
    layers.write_layout(base, [layers.tar([layers.file("etc/issue", b"the base\n")])])
    registries.push(base, tls_registry, "pyoci/base:1")
    context = tmp_path / "context"
    (context / "data").mkdir(parents=True)
    (context / "main.py").write_text("print('sealed')\n")
    (context / "data/table").write_bytes(bytes(range(256)) * 1000)
    config = {
        "image_name": f"{tls_registry.address}/pyoci/app:1",
        "base_image": f"{tls_registry.address}/pyoci/base:1",
        "context_dir": str(context),
        "include_paths": ["main.py", "data"],
        "entrypoint": ["python3", "main.py"],
        "env": {"FROM": "pyoci"},
        "output_dir": str(tmp_path / "image"),
    }
    assert tls_registry.certificate is not None
    built = subprocess.run(
        [sys.executable, "-c", BUILD, json.dumps(config)],
        env={**os.environ, "SSL_CERT_FILE": str(tls_registry.certificate.authority_file)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    digest = built.stdout.strip()
    policy = ImagePolicy(ca_certificates=tls_registry.certificate.authority)
    image = Puller(tmp_path / "store")(f"{tls_registry.address}/pyoci/app@{digest}", policy)
    assert image.digest == digest
    lower, upper = sorted(map(Path, image.layers), key=lambda layer: (layer / "app").exists())
    assert (lower / "etc/issue").read_bytes() == b"the base\n"
    assert (upper / "app/main.py").read_text() == "print('sealed')\n"
    assert (upper / "app/data/table").read_bytes() == bytes(range(256)) * 1000
    assert image.config.config is not None
    assert image.config.config.entrypoint == ("python3", "main.py")
    assert "FROM=pyoci" in (image.config.config.env or ())
