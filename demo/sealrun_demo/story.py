"""The story, chapter by chapter. Ends by itself, and leaves nothing of its own on the machine."""

import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack
from typing import NamedTuple

from sealrun_demo import broker, host, secret, services, telling, tenant, tools

EXIT_CODE = 42
INPUT = "the host may go on"
KEY_NAME = "default/image-key/demo"
DROP_IN = "/etc/containers/containers.conf.d/50-sealrun.conf"


class Installation(NamedTuple):
    """Which sealrun is shown. runtime: what `podman --runtime` is given."""

    prefix: str
    runtime: str

    def program(self, name: str) -> str:
        """The path of one of our programs."""
        return os.path.join(self.prefix, "bin", name)


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
    if len(arguments) == 2 and arguments[0] == "--prefix":
        prefix = arguments[1]
    elif arguments:
        raise telling.Failed("usage: demo/run [--prefix DIR]")
    if os.geteuid() != 0:
        raise telling.Failed("must run as root: sudo demo/run")
    program = os.path.join(prefix, "bin/sealrun")
    if not os.path.exists(program):
        raise telling.Failed(f"{program} is not there: run sudo ./install.sh first")
    return Installation(prefix, "sealrun" if _known_to_podman(program) else program)


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
        annotations = _entrust(installation, side, kbs, image, private_key)
        _remove_plain(side)

        telling.chapter("4. the host runs it, sealed")
        stack.enter_context(host.stub_image())
        places = [*host.PLACES, directory]
        _sealed_run(installation, directory, annotations, plain, places)
        telling.tell("what the broker says about it:")
        telling.output(kbs.log())

        telling.chapter("5. without the key")
        kbs.remove(KEY_NAME)
        _refused_run(installation, directory, annotations)
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
) -> dict[str, str]:
    """The annotations that the host is given."""
    kbs.store(KEY_NAME, private_key)
    init_data = os.path.join(side, "init-data.toml")
    tenant.write_init_data(init_data, image, kbs.url, kbs.certificate)
    telling.tell("the init-data, which the host passes on and cannot change unnoticed:")
    with open(init_data, "rb") as stream:
        text = stream.read()
    telling.output(text.decode())
    telling.tell("the broker's policy, which names that init-data by its digest:")
    kbs.allow(KEY_NAME, hashlib.sha256(text).hexdigest())
    command = [installation.program("sealrun"), "init-data", init_data]
    return {
        "io.sealrun.image": image.reference,
        "io.sealrun.init-data": tools.run(command).strip(),
    }


def _remove_plain(side: str) -> None:
    """What is plain leaves the machine: from here on only ciphertext and the broker's key are here."""
    telling.tell("the plain image, the key and all traces of the build are removed")
    shutil.rmtree(side)


def _sealed_run(
    installation: Installation,
    directory: str,
    annotations: dict[str, str],
    plain: secret.Secret,
    places: list[str],
) -> None:
    with host.podman_run(installation.runtime, directory, "sealed", annotations) as run:
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
        ended = run.finish(INPUT.encode() + b"\n")
    telling.output(ended.stdout + ended.stderr)
    telling.claim(up, "the workload came up")
    telling.claim(plain.sha256 in ended.stdout, "the workload read the secret in the clear")
    telling.claim(f"got: {INPUT}" in ended.stdout, "standard input reached it")
    telling.claim(ended.status == EXIT_CODE, f"its exit status {ended.status} came back by Podman")
    hits, _, _ = secret.find(plain.markers, places)
    telling.claim(not hits, "and after the run the secret is still nowhere on the host")
    _nothing_left(container)


def _refused_run(installation: Installation, directory: str, annotations: dict[str, str]) -> None:
    with host.podman_run(installation.runtime, directory, "refused", annotations) as run:
        ended = run.finish()
        container = run.container
    telling.output(ended.stdout + ended.stderr)
    telling.claim(
        ended.status == 126, f"podman's exit status is {ended.status}, not the workload's"
    )
    telling.claim("attest" in ended.stderr, "the error names the phase in which it ended")
    telling.claim(not ended.stdout, "and nothing of the workload ran")
    _nothing_left(container)


def _nothing_left(container: str) -> None:
    deadline = time.monotonic() + 10  # conmon's exit command removes the container a moment later
    while (left := host.leftovers(container)) and time.monotonic() < deadline:
        time.sleep(0.2)
    telling.claim(
        bool(container) and not left,
        f"nothing is left of it{': ' if left else ''}" + ", ".join(left),
    )
