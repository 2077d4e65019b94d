"""`sealrun keyprovider` as skopeo runs it, with a real key broker that is told of the keys."""

import json
import os
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.broker import RunningBroker, command, running_broker

PROGRAM = Path(__file__).resolve().parents[2] / "runtime/bin/sealrun"
OPTIONS = b'{"symkey":"AA==","digest":"sha256:00","cipheroptions":{"nonce":"AAAA"}}'


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


def wrap(text: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    ec = {"Parameters": {"attestation-agent": [b64encode(text.encode()).decode()]}}
    params = {"ec": ec, "optsdata": b64encode(OPTIONS).decode()}
    asked = {"op": "keywrap", "keywrapparams": params}
    return subprocess.run(
        [PROGRAM, "keyprovider", *arguments],
        input=json.dumps(asked).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )


def access(broker: RunningBroker, url: str = "") -> list[str]:
    return [
        *("--broker", url or broker.url),
        *("--admin-key", str(broker.directory / "admin/admin.key")),
        *("--ca", str(broker.directory / "tls/ca.pem")),
    ]


def test_a_key_is_at_the_broker_when_skopeo_has_its_answer(
    broker: RunningBroker, tmp_path: Path
) -> None:
    done = wrap("keyid=kbs:///default/key/new", "--keys", str(tmp_path), *access(broker))
    assert (done.returncode, done.stderr) == (0, b"")
    packet = json.loads(bytes(json.loads(done.stdout)["keywrapresults"]["annotation"]))
    assert packet["kid"] == "kbs:///default/key/new"
    assert "default/key/new" in broker.log()
    assert len((tmp_path / "default/key/new").read_bytes()) == 32


def test_a_key_of_the_broker_alone_has_a_name_of_its_own(broker: RunningBroker) -> None:
    done = wrap("", *access(broker))
    packet = json.loads(bytes(json.loads(done.stdout)["keywrapresults"]["annotation"]))
    assert packet["kid"].removeprefix("kbs:///") in broker.log()


def test_a_broker_that_refuses_or_is_not_there_is_an_error(
    broker: RunningBroker, tmp_path: Path
) -> None:
    text = "keyid=kbs:///default/key/x"
    other = tmp_path / "other"
    command("init", str(other))
    stranger = [*access(broker), "--admin-key", str(other / "admin/admin.key")]
    done = wrap(text, "--keys", str(tmp_path / "k"), *stranger)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"the key broker answers 401 to default/key/x" in done.stderr
    done = wrap(text, "--keys", str(tmp_path / "k"), *access(broker, "https://127.0.0.1:1"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"cannot reach the key broker at https://127.0.0.1:1" in done.stderr
    untrusted = [*access(broker), "--ca", str(other / "tls/ca.pem")]
    done = wrap(text, "--keys", str(tmp_path / "k"), *untrusted)
    assert b"CERTIFICATE_VERIFY_FAILED" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.registry
def test_a_skopeo_that_knows_providers_encrypts_with_it(tmp_path: Path) -> None:
    """Since 1.10 or so; an older one says that it does not know the protocol."""
    from fixtures import layers

    layout = tmp_path / "layout"
    layers.write_layout(layout, [layers.tar([layers.file("a", b"1")]), layers.tar([])])
    config = tmp_path / "providers.json"
    cmd = {"path": str(PROGRAM), "args": ["keyprovider", "--keys", str(tmp_path / "keys")]}
    config.write_text(json.dumps({"key-providers": {"attestation-agent": {"cmd": cmd}}}))
    environment = os.environ | {"OCICRYPT_KEYPROVIDER_CONFIG": str(config)}
    skopeo = os.environ.get("SEALRUN_TEST_SKOPEO", "skopeo")

    def copy(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [skopeo, "--insecure-policy", "copy", "--quiet", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
            check=False,
        )

    sealed, plain = f"oci:{tmp_path}/sealed:1", f"oci:{tmp_path}/plain:1"
    wish = "provider:attestation-agent:keyid=kbs:///default/key/1"
    done = copy("--encryption-key", wish, f"oci:{layout}:latest", sealed)
    if "protocol not recognized" in done.stderr:
        pytest.skip("this skopeo knows no key providers; name another with SEALRUN_TEST_SKOPEO")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "keys/default/key/1").exists()
    done = copy("--decryption-key", "provider:attestation-agent:any", sealed, plain)
    assert done.returncode == 0, done.stderr
    blobs = {path.name for path in (tmp_path / "plain/blobs/sha256").iterdir()}
    assert {layers.digest(layers.compress(layers.tar([]), "gzip"))[7:]} <= blobs
