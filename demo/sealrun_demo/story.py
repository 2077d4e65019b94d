"""The story, chapter by chapter. Ends by itself, and leaves nothing of its own on the machine."""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack
from typing import NamedTuple

from sealrun_demo import broker, host, refusals, secret, services, telling, tenant, tools

EXIT_CODE = 42
INPUT = "the host may go on"
KEY_NAME = "default/image-key/demo"
DROP_IN = "/etc/containers/containers.conf.d/50-sealrun.conf"


class Installation(NamedTuple):
    """Which sealrun is shown. runtime: what `podman --runtime` is given. tpm: with VMs that have a TPM."""

    prefix: str
    runtime: str
    tpm: bool

    def program(self, name: str) -> str:
        """The path of one of our programs."""
        return os.path.join(self.prefix, "bin", name)


class Trusted(NamedTuple):
    """What the tenant gives away. annotations: for the host; references: for the broker, with a TPM."""

    annotations: dict[str, str]
    init_data: bytes
    image: tenant.Image
    references: dict[str, list[str]]


def main(arguments: list[str]) -> int:
    """Tell the story; returns the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _tell(_installation(arguments))
    except telling.Failed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


def _installation(arguments: list[str]) -> Installation:
    prefix = "/usr/local"
    words = [word for word in arguments if word != "--tpm"]
    if len(words) == 2 and words[0] == "--prefix":
        prefix = words[1]
    elif words:
        raise telling.Failed("usage: demo/run [--prefix DIR] [--tpm]")
    if os.geteuid() != 0:
        raise telling.Failed("must run as root: sudo demo/run")
    program = os.path.join(prefix, "bin/sealrun")
    if not os.path.exists(program):
        raise telling.Failed(f"{program} is not there: run sudo ./install.sh first")
    runtime = "sealrun" if _known_to_podman(program) else program
    return Installation(prefix, runtime, len(words) != len(arguments))


def _known_to_podman(program: str) -> bool:
    """Whether Podman has it by name: then errors come through conmon's log."""
    try:
        with open(DROP_IN, encoding="utf-8") as stream:
            return f'"{program}"' in stream.read()
    except FileNotFoundError:
        return False


def _tell(installation: Installation) -> None:
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="sealrun-demo-"))
        side = os.path.join(directory, "tenant")
        os.makedirs(side, mode=0o700)
        plain = secret.Secret()
        layout = _build(side, plain)
        address = stack.enter_context(services.registry(os.path.join(directory, "registry")))
        image, private_key = _encrypt(side, layout, address)
        kbs = stack.enter_context(_key_broker(installation, directory))
        trusted = _entrust(installation, side, kbs, image, private_key)
        _remove_plain(side)

        telling.chapter("4. the host runs it, sealed")
        sealrun = installation.program("sealrun")
        stub = stack.enter_context(host.stub_image(sealrun, image.reference))
        workload = host.Workload(stub, trusted.annotations)
        places = [*host.PLACES, directory]
        thief = refusals.Thief(kbs.url, kbs.authority, trusted.init_data.decode())
        _sealed_run(installation, directory, workload, plain, places=places, thief=thief)
        telling.tell("what the broker says about it:")
        telling.output(kbs.log())

        if installation.tpm:
            _other_vms(installation, directory, kbs, trusted, workload)
        telling.chapter("the last but one: without the key")
        kbs.remove(KEY_NAME)
        _refused_run(installation, directory, workload)
    telling.claim(not os.path.exists(directory), "the demonstration removed all it made")
    telling.chapter("the end")
    telling.tell("an encrypted image ran in a micro-VM, and only there was it ever plain")


def _build(side: str, plain: secret.Secret) -> str:
    telling.chapter("1. the tenant builds an image with a secret in it")
    layout = tenant.build(side, plain)
    telling.tell(f"/secret holds {secret.SECRET_BYTES // 1024} KiB of random bytes")
    hits, _, _ = secret.find(plain.markers, [layout])
    telling.claim(
        bool(hits), "a search finds it in the plain image, through gzip: the search works"
    )
    return layout


def _encrypt(side: str, layout: str, registry: str) -> tuple[tenant.Image, str]:
    """The image in the registry, and the path of the private key."""
    telling.chapter("2. encrypts it and pushes it to a registry")
    private_key, public_key = tenant.make_key(side)
    image = tenant.encrypt(layout, public_key, registry)
    telling.tell(f"it is now {image.reference}")
    encrypted = all(kind.endswith("+encrypted") for kind in image.media_types)
    telling.claim(encrypted, f"its layers are {', '.join(image.media_types)}")
    return image, private_key


def _key_broker(
    installation: Installation, directory: str
) -> AbstractContextManager[broker.Broker]:
    telling.chapter("3. puts the key into a key broker and says whom the guest shall trust")
    return broker.serving(installation.program("sealrun-broker"), os.path.join(directory, "broker"))


def _entrust(
    installation: Installation, side: str, kbs: broker.Broker, image: tenant.Image, private_key: str
) -> Trusted:
    kbs.store(KEY_NAME, private_key)
    init_data = os.path.join(side, "init-data.toml")
    tpm, sealrun = installation.tpm, installation.program("sealrun")
    tenant.write_init_data(init_data, image, kbs.url, kbs.certificate, tpm=tpm)
    telling.tell("the init-data, which the host passes on and cannot change unnoticed:")
    with open(init_data, "rb") as stream:
        text = stream.read()
    telling.output(text.decode())
    telling.tell("the broker's policy, which names that init-data by its digest:")
    digest = hashlib.sha256(text).hexdigest()
    references: dict[str, list[str]] = {}
    if tpm:
        kbs.allow_tpm(KEY_NAME, digest, image.digest)
        telling.tell("what a good VM's TPM says, computed without booting one:")
        options = ["--tee", "tpm", "--attestation-key", "--init-data", init_data]
        measured = tools.run([sealrun, "measure", *options, "--format", "broker"])
        telling.output(measured)
        references = json.loads(measured)
        for name, values in references.items():
            kbs.expect(name, values)
    else:
        kbs.allow(KEY_NAME, digest)
    annotations = {
        "io.sealrun.init-data": tools.run([sealrun, "init-data", init_data]).strip(),
    }
    return Trusted(annotations, text, image, references)


def _remove_plain(side: str) -> None:
    """What is plain leaves the machine: from here on only ciphertext and the broker's key are here."""
    telling.tell("the plain image, the key and all traces of the build are removed")
    shutil.rmtree(side)


def _sealed_run(
    installation: Installation,
    directory: str,
    workload: host.Workload,
    plain: secret.Secret,
    *,
    places: list[str],
    thief: refusals.Thief,
) -> None:
    with host.podman_run(installation.runtime, directory, "sealed", workload) as run:
        telling.tell("the VM boots, attests, fetches the key, pulls, verifies, decrypts, runs ...")
        up = run.wait_for_output("waiting for a line")
        if up:
            telling.tell("it runs; meanwhile the host looks for the secret")
            hits, files, size = secret.find(plain.markers, places)
            telling.claim(
                not hits,
                f"not found in {files} files ({size >> 20} MiB) below {' '.join(places)}"
                + (f"; but in {hits}" if hits else ""),
            )
        container = run.container
        if up and installation.tpm:
            telling.tell("meanwhile somebody tries what the host can have of the VM's evidence")
            thief.replays(installation.program("sealrun"), directory, container)
            (token,) = re.findall("^token: (.+)$", run.said, re.MULTILINE)
            thief.waits(token, KEY_NAME)
        ended = run.finish(INPUT.encode() + b"\n")
    telling.output(ended.stdout + ended.stderr)
    telling.claim(up, "the workload came up")
    telling.claim(plain.sha256 in ended.stdout, "the workload read the secret in the clear")
    telling.claim(f"got: {INPUT}" in ended.stdout, "standard input reached it")
    telling.claim(ended.status == EXIT_CODE, f"its exit status {ended.status} came back by Podman")
    hits, _, _ = secret.find(plain.markers, places)
    telling.claim(not hits, "and after the run the secret is still nowhere on the host")
    _nothing_left(container)


def _refused_run(installation: Installation, directory: str, workload: host.Workload) -> None:
    with host.podman_run(installation.runtime, directory, "refused", workload) as run:
        ended = run.finish()
        container = run.container
    telling.output(ended.stdout + ended.stderr)
    telling.claim(
        ended.status == 126, f"podman's exit status is {ended.status}, not the workload's"
    )
    telling.claim("attest" in ended.stderr, "the error names the phase in which it ended")
    telling.claim(not ended.stdout, "and nothing of the workload ran")
    _nothing_left(container)


def _other_vms(
    installation: Installation,
    directory: str,
    kbs: broker.Broker,
    trusted: Trusted,
    workload: host.Workload,
) -> None:
    """VMs that are another one than the tenant's, one after the other."""
    image = trusted.image.digest
    digest = hashlib.sha256(trusted.init_data).hexdigest()

    telling.chapter("5. a VM that booted something else: PCR 9 is not what the broker expects")
    kbs.expect("tpm_pcr09", ["00" * 32])
    _refused_run(installation, directory, workload)
    _reason(kbs, "PCR 9 is not among the reference values tpm_pcr09")
    kbs.expect("tpm_pcr09", trusted.references["tpm_pcr09"])

    telling.chapter("6. a host that changes the init-data")
    telling.tell("it adds a comment, so that everything in it means the same")
    changed = base64.b64encode(trusted.init_data + b"# changed\n").decode()
    annotations = {**workload.annotations, "io.sealrun.init-data": changed}
    _refused_run(installation, directory, workload._replace(annotations=annotations))
    _reason(kbs, "its init-data is another one")

    telling.chapter("7. a key that is for another image")
    kbs.allow_tpm(KEY_NAME, digest, f"sha256:{'0' * 64}")
    _refused_run(installation, directory, workload)
    _reason(kbs, "it pulled another image")
    kbs.allow_tpm(KEY_NAME, digest, image)


def _reason(kbs: broker.Broker, reason: str) -> None:
    last = kbs.log().splitlines()[-1]
    telling.output(last)
    telling.claim(reason in last, "the broker's log says why")


def _nothing_left(container: str) -> None:
    deadline = time.monotonic() + 10  # conmon's exit command removes the container a moment later
    while (left := host.leftovers(container)) and time.monotonic() < deadline:
        time.sleep(0.2)
    telling.claim(
        bool(container) and not left,
        f"nothing is left of it{': ' if left else ''}" + ", ".join(left),
    )
