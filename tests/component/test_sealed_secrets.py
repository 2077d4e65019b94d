"""Sealed secrets, made by the broker's command line and opened by the agent's client of a real broker."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fixtures import direct
from fixtures.broker import LAUNCHER, RunningBroker, command, running_broker
from sealrun_agent.attestation import sealed_secret
from sealrun_agent.attestation.choice import Choice
from sealrun_agent.errors import AttestError
from sealrun_agent.jose import decode, encode
from sealrun_agent.vault import Vault
from sealrun_broker import sealing
from sealrun_protocol import init_data
from sealrun_protocol.errors import ErrorCode

KID, KEY_ID, NAME = (f"kbs:///default/key/{name}" for name in ("signer", "sealing", "secret"))
SECRET = b"correct horse\nbattery staple"
PLACE = "ONE"


class Tenant:
    """Keys on the tenant's side, and the broker that has what a guest needs of them."""

    def __init__(self, directory: Path, broker: RunningBroker) -> None:
        self.directory, self.broker = directory, broker
        command("seal-key", str(directory / "signer"))
        (directory / "sealing.key").write_bytes(os.urandom(32))
        broker.add_resource("default/key/signer", (directory / "signer-public.json").read_bytes())
        broker.add_resource("default/key/sealing", (directory / "sealing.key").read_bytes())
        broker.add_resource("default/key/secret", SECRET)

    def seal(self, *arguments: str, stdin: bytes = b"") -> str:
        signer = str(self.directory / "signer-private.json")
        return command("seal", "--signer", signer, "--kid", KID, *arguments, stdin=stdin).strip()

    def vault_secret(self) -> str:
        return self.seal("vault", NAME)

    def envelope_secret(self) -> str:
        key = str(self.directory / "sealing.key")
        return self.seal("envelope", "--key", key, "--key-id", KEY_ID, "-", stdin=SECRET)

    def signed(self, payload: dict[str, Any], kid: str = KID) -> bytes:
        """Sealed in earnest, whatever the payload is."""
        signer = (self.directory / "signer-private.json").read_bytes()
        return sealing.sealed(payload, signer, kid).encode()


@pytest.fixture(scope="module")
def tenant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    directory = tmp_path_factory.mktemp("tenant")
    with running_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield Tenant(directory, broker)


@pytest.fixture
def vault(tenant: Tenant) -> Iterator[Vault]:
    document = init_data.parse(tenant.broker.init_data())
    with closing(Vault(document, Choice("/nonexistent"), direct.dial)) as opened:
        yield opened


def refused(vault: Vault, text: bytes) -> AttestError:
    with pytest.raises(AttestError) as caught:
        vault.unseal(text, PLACE)
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("kind", ["vault_secret", "envelope_secret"])
def test_both_forms(tenant: Tenant, vault: Vault, kind: str) -> None:
    text = getattr(tenant, kind)()
    assert text.startswith("sealed.")
    assert text.count(".") == 3
    assert vault.unseal(text.encode(), PLACE) == SECRET
    assert vault.unseal(f"{text}\n".encode(), PLACE) == SECRET


@pytest.mark.parametrize("kind", ["vault", "envelope"])
def test_a_secret_for_one_place(tenant: Tenant, vault: Vault, kind: str) -> None:
    """The host cannot put it anywhere else; what has no place can be anywhere, as CoCo has it."""
    key = ("--key", str(tenant.directory / "sealing.key"), "--key-id", KEY_ID, "-")
    options = (NAME,) if kind == "vault" else key
    text = tenant.seal("--place", "/run/secrets/one", kind, *options, stdin=SECRET).encode()
    assert vault.unseal(text, "/run/secrets/one") == SECRET
    for place in ("/run/secrets/two", "ONE", ""):
        with pytest.raises(AttestError, match="it is for another place") as caught:
            vault.unseal(text, place)
        assert caught.value.code is ErrorCode.SEAL_INVALID


def test_one_attestation_serves_all(tenant: Tenant, vault: Vault) -> None:
    before = tenant.broker.log().count(" attest ")
    for _ in range(3):
        assert vault.unseal(tenant.vault_secret().encode(), PLACE) == SECRET
    assert tenant.broker.log().count(" attest ") == before + 1


def test_the_form_is_coco_s(tenant: Tenant) -> None:
    """Header and payload as guest-components writes and reads them."""
    _, header, payload, signature = tenant.vault_secret().split(".")
    assert json.loads(decode(header)) == {"alg": "ES256", "kid": KID}
    assert json.loads(decode(payload)) == {
        "version": "0.1.0",
        "type": "vault",
        "name": NAME,
        "provider": "kbs",
        "provider_settings": {},
        "annotations": {},
    }
    assert len(decode(signature)) == 64


@pytest.mark.parametrize("kind", ["vault_secret", "envelope_secret"])
def test_no_character_may_change(tenant: Tenant, kind: str) -> None:
    """Without a broker: what does not verify asks it for the signer's key at most."""
    text = getattr(tenant, kind)()
    public = (tenant.directory / "signer-public.json").read_bytes()
    keys = {KID: public, NAME: SECRET, KEY_ID: (tenant.directory / "sealing.key").read_bytes()}

    def resource(uri: str) -> bytes:
        asked.append(uri)
        if uri not in keys:
            raise AttestError(ErrorCode.KEY_NOT_FOUND, "none")
        return keys[uri]

    for position in range(len("sealed."), len(text), 3):
        letter = "A" if text[position] != "A" else "B"
        asked: list[str] = []
        changed = text[:position] + letter + text[position + 1 :]
        try:
            opened = sealed_secret.unseal(changed.encode(), PLACE, resource)
        except AttestError:
            assert set(asked) <= {KID} or len(asked) == 1
        else:  # the last character of a part has bits that nobody reads
            assert opened == SECRET


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"sealed.", "not a signed one"),
        (b"sealed.a.b", "not a signed one"),
        (b"sealed.fakejwsheader.e30.fakesignature", "cannot open a sealed secret"),
        (b"sealed.e30.e30.e30", "missing required field"),
        (b"sealed.\xff.e30.e30", "cannot open a sealed secret"),
        (b"sealed." + b"a" * (256 * 1024), "longer than"),
        (
            b"sealed." + encode(b'{"alg":"none","kid":"x"}').encode() + b".e30.",
            "signed with 'none'",
        ),
        (b"sealed." + encode(b'{"alg":"HS256","kid":"x"}').encode() + b".e30.", "with 'HS256'"),
        (
            b"sealed." + encode(b'{"alg":"ES256","kid":"x"}').encode() + b".e30.AA",
            "not one of ES256",
        ),
    ],
)
def test_what_is_no_sealed_secret(vault: Vault, text: bytes, said: str) -> None:
    error = refused(vault, text)
    assert error.code is ErrorCode.SEAL_INVALID
    assert said in str(error)


Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda payload: payload | {"version": "0.2.0"}, "not of version 0.1.0"),
        (lambda payload: payload | {"provider": "aliyun"}, "provider kbs"),
        (lambda payload: payload | {"type": "other"}, "neither vault nor envelope"),
        (lambda payload: payload | {"wrap_type": "A128GCM"}, "not A256GCM"),
        (lambda payload: payload | {"iv": "AAAA"}, "iv is not 12 bytes"),
        (lambda payload: payload | {"annotations": {"iv": "AAAA"}}, "iv is not 12 bytes"),
        (lambda payload: payload | {"annotations": {}}, "missing required field"),
        (lambda payload: payload | {"encrypted_data": "AAAA"}, "was changed, or sealed with"),
        (lambda payload: payload | {"encrypted_key": "AAAA"}, "was changed, or sealed with"),
        (lambda payload: payload | {"encrypted_key": "!"}, "cannot open a sealed secret"),
        (lambda payload: payload | {"key_id": NAME}, "sealing key is not 32 bytes"),
        (lambda payload: {"version": "0.1.0"}, "missing required field"),
    ],
)
def test_signed_and_yet_no_secret(tenant: Tenant, vault: Vault, change: Change, said: str) -> None:
    key = (tenant.directory / "sealing.key").read_bytes()
    text = tenant.signed(change(sealing.envelope(SECRET, key, KEY_ID)))
    error = refused(vault, text)
    assert error.code is ErrorCode.SEAL_INVALID
    assert said in str(error)


def test_another_signer(tenant: Tenant, vault: Vault, tmp_path: Path) -> None:
    command("seal-key", str(tmp_path / "other"))
    signer = (tmp_path / "other-private.json").read_bytes()
    text = sealing.sealed(sealing.vault(NAME), signer, KID).encode()
    assert "its signature does not match" in str(refused(vault, text))


def test_a_signer_that_is_no_key(tenant: Tenant, vault: Vault) -> None:
    error = refused(vault, tenant.signed(sealing.vault(NAME), kid=NAME))
    assert error.code is ErrorCode.SEAL_INVALID


@pytest.mark.parametrize(
    ("name", "kid", "code"),
    [
        ("kbs:///default/key/none", KID, ErrorCode.KEY_NOT_FOUND),
        ("kbs:///secret/key/app", KID, ErrorCode.KEY_DENIED),
        (NAME, "kbs:///default/key/none", ErrorCode.KEY_NOT_FOUND),
    ],
)
def test_what_the_broker_does_not_give(
    tenant: Tenant, vault: Vault, name: str, kid: str, code: ErrorCode
) -> None:
    assert refused(vault, tenant.signed(sealing.vault(name), kid=kid)).code is code


def test_without_a_broker() -> None:
    vault = Vault(init_data.ABSENT, Choice("/nonexistent"), direct.dial)
    text = b"sealed." + encode(b'{"alg":"ES256","kid":"kbs:///a/b/c"}').encode() + b".e30."
    error = refused(vault, text + encode(bytes(64)).encode())
    assert error.code is ErrorCode.BROKER_NOT_CONFIGURED


def test_what_the_command_line_refuses(tenant: Tenant, tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "short").write_bytes(b"abc")
    signer = str(tenant.directory / "signer-private.json")
    public = str(tenant.directory / "signer-public.json")
    for arguments, said in (
        (("--signer", signer, "--kid", "x", "vault", NAME), "'x' is not kbs:///"),
        (("--signer", signer, "--kid", KID, "vault", "a/b/c"), "'a/b/c' is not kbs:///"),
        (("--signer", public, "--kid", KID, "vault", NAME), "not a private JWK"),
        (
            (
                *("--signer", signer, "--kid", KID, "envelope"),
                "--key",
                str(tmp_path / "short"),
                "--key-id",
                KEY_ID,
                "-",
            ),
            "not 32 bytes long",
        ),
    ):
        done = subprocess.run(
            [LAUNCHER, "seal", *arguments], capture_output=True, text=True, input=""
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
