"""The tenant's side: build the image, encrypt and push it, write the init-data.

All of it happens in one directory that stands for the tenant's own machine; what is plain in there
is removed before the host gets to run anything.
"""

import glob
import json
import os
import shutil
from dataclasses import dataclass

from sealrun_demo import tools
from sealrun_demo.secret import Secret

APP = """#!/bin/sh
echo "hello from inside the seal: pid $$, kernel $(uname -r)"
echo "sha256 of /secret: $(sha256sum /secret | cut -d ' ' -f 1)"
if grep -q 0100007F:1F46 /proc/net/tcp; then # the agent serves 127.0.0.1:8006
    echo "token: $(wget -q -O - 'http://127.0.0.1:8006/aa/token?token_type=kbs' | cut -d '"' -f 4)"
fi
echo "waiting for a line on standard input"
read -r line
echo "got: $line"
exit 42
"""
APPLETS = ("sh", "uname", "sha256sum", "cut", "grep", "wget")
KEY_URI = "kbs:///default/image-key/demo"

INIT_DATA = """version = "0.1.0"
algorithm = "sha256"

[data]
"aa.toml" = '''
[token_configs.kbs]
url = "{broker_url}"
cert = \"\"\"
{broker_ca}\"\"\"
'''

"sealrun.toml" = '''
{attestation}
[image]
allowed = ["{image}"]
decryption_keys = ["{key_uri}"]
insecure_registries = ["{registry}"]
'''
"""
SAMPLE = """[attestation]
insecure_sample_evidence = true   # this demonstration has no TEE; never do this in earnest
"""
TPM = """[attestation]
tees = ["tpm"]          # a VM whose TPM says what was booted, and no other

[container]
allow_output = true     # the host may read what the program prints

[workload]
api = ["attestation"]   # the program may ask the agent for a token
"""


@dataclass(frozen=True)
class Image:
    """In the registry. reference: registry/repository@digest; media_types: of its layers."""

    reference: str
    media_types: list[str]

    @property
    def digest(self) -> str:
        """Of its manifest."""
        return self.reference.partition("@")[2]


def build(directory: str, secret: Secret) -> str:
    """Make the image with buildah; the path of its OCI layout. Raises telling.Failed."""
    tree = os.path.join(directory, "tree")
    os.makedirs(os.path.join(tree, "bin"))
    shutil.copy2(_busybox(directory), os.path.join(tree, "bin/busybox"))
    for applet in APPLETS:
        os.symlink("busybox", os.path.join(tree, "bin", applet))
    with open(os.path.join(tree, "bin/app"), "w", encoding="utf-8") as stream:
        stream.write(APP)
        os.fchmod(stream.fileno(), 0o755)
    with open(os.path.join(tree, "secret"), "wb") as stream:
        stream.write(secret.content)
    buildah = ["buildah", "--storage-driver", "vfs", "--root", os.path.join(directory, "storage")]
    buildah += ["--runroot", os.path.join(directory, "runroot")]
    container = tools.run([*buildah, "from", "scratch"], show=False).strip()
    tools.run([*buildah, "copy", "--quiet", container, tree, "/"], show=False)
    tools.run([*buildah, "config", "--cmd", '["/bin/app"]', container], show=False)
    layout = os.path.join(directory, "plain")
    commit = [*buildah, "commit", "--quiet", "--disable-compression=false", container]
    tools.run([*commit, f"oci:{layout}:app"], show=False)
    return layout


def _busybox(directory: str) -> str:
    """A static busybox. Its package would push the dynamic one off the host, so it is unpacked here
    where it is not installed already."""
    query = ["dpkg-query", "--show", "--showformat", "${Package}=${db:Status-Status} ", "busybox*"]
    if "busybox-static=installed" in tools.run(query, show=False):
        return "/bin/busybox"
    tools.run(["apt-get", "--quiet", "download", "busybox-static"], directory=directory)
    (package,) = glob.glob(os.path.join(directory, "busybox-static_*.deb"))
    unpacked = os.path.join(directory, "busybox")
    tools.run(["dpkg-deb", "--extract", package, unpacked], show=False)
    return os.path.join(unpacked, "bin/busybox")


def make_key(directory: str) -> tuple[str, str]:
    """An RSA key pair: paths of the private and the public PEM file."""
    private, public = (os.path.join(directory, name) for name in ("image.key", "image.pub"))
    tools.run(["openssl", "genpkey", "-quiet", "-algorithm", "RSA", "-out", private])
    tools.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], show=False)
    return private, public


def encrypt(layout: str, public_key: str, registry: str) -> Image:
    """Encrypt the layers for the key and push the image. Raises telling.Failed."""
    name = f"{registry}/demo/app"
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
    copy += ["--encryption-key", f"jwe:{public_key}", f"oci:{layout}:app", f"docker://{name}:1"]
    tools.run(copy)
    inspect = ["skopeo", "inspect", "--tls-verify=false"]
    raw = tools.run([*inspect, "--raw", f"docker://{name}:1"], show=False)
    digest = json.loads(tools.run([*inspect, f"docker://{name}:1"], show=False))["Digest"]
    layers = json.loads(raw)["layers"]
    return Image(f"{name}@{digest}", [layer["mediaType"] for layer in layers])


def write_init_data(path: str, image: Image, broker_url: str, broker_ca: str, *, tpm: bool) -> None:
    """The document that tells the guest whom to trust. tpm: the evidence is a TPM's, not a sample."""
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(
            INIT_DATA.format(
                broker_url=broker_url,
                broker_ca=broker_ca,
                attestation=TPM if tpm else SAMPLE,
                image=image.reference,
                key_uri=KEY_URI,
                registry=image.reference.split("/")[0],
            )
        )
