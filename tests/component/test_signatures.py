"""policy.json: the guest's verdict is skopeo's, for the same policy, image and signatures.

Debian 12's skopeo has no opinion on sigstore's (it says so); skopeo 1.18 agrees there, too.
"""

import base64
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fixtures import layers, signing
from fixtures.pulling import Puller
from fixtures.signing import OPENPGP, Gpg, payload, pem, sign
from sealrun_agent.errors import AgentError
from sealrun_agent.image.pull import ImagePolicy
from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode
from simulators import registry as simulators
from simulators.registry import Answer, Simulator, manifest_path

TAR = layers.tar([layers.file("file", b"content")])
KEY, OTHER = signing.ecdsa_key(), signing.ecdsa_key()
REJECT = [{"type": "reject"}]
ACCEPT = [{"type": "insecureAcceptAnything"}]
ELSE = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def gpgs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gpg, Gpg]]:
    homes = tmp_path_factory.mktemp("gpg")
    with signing.gpg(homes / "a") as one, signing.gpg(homes / "b", "other") as two:
        yield one, two


class World(NamedTuple):
    """A published image, whoever pulls it, and what skopeo says."""

    simulator: Simulator
    directory: Path
    reference: str
    digest: str

    @property
    def name(self) -> str:
        return f"{self.simulator.address}/{simulators.REPOSITORY}"

    @property
    def said(self) -> str:
        """What skopeo said last."""
        return (self.directory / "said").read_text()

    def skopeo(self, policy: dict[str, Any], reference: str) -> bool:
        """Whether skopeo lets the image in."""
        settings = self.directory / "registries.d"
        settings.mkdir(exist_ok=True)
        docker = {
            self.simulator.address: {
                "use-sigstore-attachments": True,
                "lookaside": f"http://{self.simulator.address}/sigs",
            }
        }
        (settings / "a.yaml").write_text(json.dumps({"docker": docker}))
        file = self.directory / "policy.json"
        file.write_text(json.dumps(policy))
        done = subprocess.run(
            ["skopeo", "--policy", str(file), "--registries.d", str(settings), "copy", "--quiet", "--remove-signatures",
             "--src-tls-verify=false", f"docker://{reference}", f"dir:{self.directory}/out"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        (self.directory / "said").write_text(done.stderr)
        refused = "Source image rejected" in done.stderr
        assert done.returncode == 0 or refused, done.stderr
        return done.returncode == 0

    def guest(
        self, policy: dict[str, Any], reference: str, **resources: bytes
    ) -> AgentError | None:
        """What the guest says."""
        puller = Puller(Path(tempfile.mkdtemp(dir=self.directory)) / "store")
        puller.resources = {f"kbs:///a/b/{name}": data for name, data in resources.items()}
        wishes = ImagePolicy(
            (self.simulator.address,),
            security_policy=json.dumps(policy),
            lookaside={self.simulator.address: f"http://{self.simulator.address}/sigs"},
        )
        try:
            puller(reference, wishes)
        except AgentError as error:
            assert puller.left() == []
            assert str(error).isprintable()
            assert len(str(error)) < 900
            return error
        return None


@pytest.fixture
def world(tmp_path: Path, simulator: Simulator) -> World:
    reference = simulator.publish([TAR])
    simulator.answers["/v2/"] = Answer(b"{}")  # skopeo looks whether there is a registry
    manifest = simulator.answers[manifest_path("1")]
    assert isinstance(manifest, Answer)
    digest = layers.digest(manifest.body)
    unknown = b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'
    missing = Answer(unknown, 404, {"Content-Type": "application/json"})
    simulator.answers[manifest_path(f"{digest.replace(':', '-')}.sig")] = missing
    return World(simulator, tmp_path, reference, digest)


def sigstore(identity: dict[str, str] | None = None, *keys: bytes) -> list[dict[str, Any]]:
    data = [base64.b64encode(key).decode() for key in keys or (pem(KEY),)]
    requirement = [{"type": "sigstoreSigned", "keyData": one} for one in data]
    return [r | ({"signedIdentity": identity} if identity else {}) for r in requirement]


def openpgp(keys: bytes, identity: dict[str, str] | None = None) -> list[dict[str, Any]]:
    data = base64.b64encode(keys).decode()
    requirement = {"type": "signedBy", "keyType": "GPGKeys", "keyData": data}
    return [requirement | ({"signedIdentity": identity} if identity else {})]


def identity(kind: str, **members: str) -> dict[str, str]:
    return {"type": kind} | members


def agreed(world: World, policy: dict[str, Any], reference: str = "") -> bool:
    """The verdict, of which both are convinced."""
    image = reference or world.reference
    error = world.guest(policy, image)
    admitted = world.skopeo(policy, image)
    if "sigstore disabled" not in world.said:
        assert admitted == (error is None), f"{error}: {world.said}"
    if error is not None:
        assert error.code is ErrorCode.IMAGE_NOT_SIGNED
    return error is None


# --- scopes ----------------------------------------------------------------------------------------


def test_the_most_specific_scope_counts(world: World) -> None:
    name, host = world.name, world.simulator.address
    namespace = name.rpartition("/")[0]
    for scopes, expected in (
        ({}, False),
        ({"": ACCEPT}, True),
        ({host: ACCEPT}, True),
        ({namespace: ACCEPT, host: REJECT}, True),
        ({name: REJECT, namespace: ACCEPT}, False),
        ({f"{name}:1": ACCEPT, name: REJECT}, True),
        ({f"{name}:2": ACCEPT}, False),
        ({"*.0.0.1": ACCEPT}, True),
        ({"*.0.1": REJECT, "*.1": ACCEPT}, False),
        ({f"{namespace}/other": ACCEPT}, False),
    ):
        policy = {"default": REJECT, "transports": {"docker": scopes}}
        assert agreed(world, policy) is expected, scopes
    policy = {"default": REJECT, "transports": {"docker": {f"{name}@{world.digest}": ACCEPT}}}
    assert agreed(world, policy, f"{name}@{world.digest}")
    assert not agreed(world, policy)


def test_all_requirements_must_hold(world: World) -> None:
    assert not agreed(world, {"default": ACCEPT + REJECT})
    assert agreed(world, {"default": ACCEPT + ACCEPT})


# --- signatures ------------------------------------------------------------------------------------

IDENTITIES = [
    (None, "{name}:1", True),
    (None, "{name}:2", False),
    (None, "{name}", False),
    (identity("matchExact"), "{name}:1", True),
    (identity("matchExact"), "{name}:2", False),
    (identity("matchRepository"), "{name}", True),
    (identity("matchRepository"), "{name}:7", True),
    (identity("matchRepository"), "{name}x:1", False),
    (identity("exactReference", dockerReference="r.example/a:1"), "r.example/a:1", True),
    (identity("exactReference", dockerReference="r.example/a:1"), "{name}:1", False),
    (identity("exactRepository", dockerRepository="r.example/a"), "r.example/a:9", True),
    (identity("exactRepository", dockerRepository="r.example/a"), "r.example/ab:9", False),
    (identity("remapIdentity", prefix="{host}", signedPrefix="r.example/x"), "r.example/x/demo/image:1", True),
    (identity("remapIdentity", prefix="{host}/demo", signedPrefix="r.example"), "r.example/image:1", True),
    (identity("remapIdentity", prefix="{host}/dem", signedPrefix="r.example"), "r.example/o/image:1", False),
    (identity("exactRepository", dockerRepository="docker.io/library/a"), "a:1", True),
]  # fmt: skip


def filled(world: World, text: str) -> str:
    return text.format(name=world.name, host=world.simulator.address)


def test_identities_of_openpgp_signatures(world: World, gpgs: tuple[Gpg, Gpg]) -> None:
    for wanted, signed, expected in IDENTITIES:
        data = payload(filled(world, signed), world.digest, OPENPGP, optional={})
        signing.lookaside(world.simulator, world.digest, [gpgs[0].sign(data)])
        given = {k: filled(world, v) for k, v in wanted.items()} if wanted else None
        policy = {"default": openpgp(gpgs[0].public(), given)}
        assert agreed(world, policy) is expected, (wanted, signed)


def test_identities_of_sigstore_signatures(world: World) -> None:
    for wanted, signed, expected in IDENTITIES:
        data = payload(filled(world, signed), world.digest)
        signing.attach(world.simulator, world.digest, [(data, sign(KEY, data))])
        given = {k: filled(world, v) for k, v in wanted.items()} if wanted else None
        assert agreed(world, {"default": sigstore(given)}) is expected, (wanted, signed)


def test_openpgp_signatures_that_count_and_that_do_not(world: World, gpgs: tuple[Gpg, Gpg]) -> None:
    one, two = gpgs
    right = payload(f"{world.name}:1", world.digest, OPENPGP, optional={})
    good = one.sign(right)
    wrong_digest = one.sign(payload(f"{world.name}:1", ELSE, OPENPGP, optional={}))
    wrong_type = one.sign(payload(f"{world.name}:1", world.digest, optional={}))
    extra = one.sign(payload(f"{world.name}:1", world.digest, OPENPGP, optional={}, more=1))
    cases: list[tuple[list[bytes], bool]] = [
        ([], False),
        ([good], True),
        ([two.sign(right)], False),
        ([wrong_digest], False),
        ([wrong_type], False),
        ([extra], False),
        ([b"\xa0garbage"], False),
        ([good[:-4]], False),
        ([good[:30] + bytes([good[30] ^ 1]) + good[31:]], False),
        ([one.sign(b"no JSON")], False),
        ([b"\xa0garbage", two.sign(right), good], True),
    ]
    for messages, expected in cases:
        world.simulator.answers = {
            path: answer
            for path, answer in world.simulator.answers.items()
            if not path.startswith("/sigs")
        }
        signing.lookaside(world.simulator, world.digest, messages)
        assert agreed(world, {"default": openpgp(one.public())}) is expected, messages
    armored = world.guest({"default": openpgp(one.public(armor=True))}, world.reference)
    assert armored is None
    both = {"default": openpgp(one.public()) + openpgp(two.public())}
    assert agreed(world, both)
    for path in [path for path in world.simulator.answers if path.startswith("/sigs")]:
        del world.simulator.answers[path]
    signing.lookaside(world.simulator, world.digest, [good])
    assert not agreed(world, both)
    ring = {"default": openpgp(two.public() + one.public())}
    assert agreed(world, ring)


def test_sigstore_signatures_that_count_and_that_do_not(world: World) -> None:
    right = payload(f"{world.name}:1", world.digest)
    other = payload(f"{world.name}:1", ELSE)
    openpgp_type = payload(f"{world.name}:1", world.digest, OPENPGP)
    extra = payload(f"{world.name}:1", world.digest, more=1)
    twice = right.replace(b'"optional"', b'"critical": {}, "optional"')
    good = (right, sign(KEY, right))
    cases: list[tuple[list[tuple[bytes, str]], bool]] = [
        ([], False),
        ([good], True),
        ([(right, sign(OTHER, right))], False),
        ([(other, sign(KEY, other))], False),
        ([(right, sign(KEY, other))], False),
        ([(openpgp_type, sign(KEY, openpgp_type))], False),
        ([(extra, sign(KEY, extra))], False),
        ([(twice, sign(KEY, twice))], False),
        ([(right, "no base64!")], False),
        ([(right, "")], False),
        ([(b"{}", sign(KEY, b"{}"))], False),
        ([(right, sign(OTHER, right)), good], True),
    ]
    policy = {"default": sigstore()}
    for signatures, expected in cases:
        signing.attach(world.simulator, world.digest, signatures)
        assert agreed(world, policy) is expected, signatures
    signing.attach(world.simulator, world.digest, [good])
    assert world.guest({"default": sigstore(None, pem(KEY), pem(OTHER))}, world.reference)
    assert world.guest({"default": sigstore(None, b"no key")}, world.reference)


def test_an_image_without_signatures(world: World) -> None:
    error = world.guest({"default": sigstore()}, world.reference)
    assert error is not None
    assert error.code is ErrorCode.IMAGE_NOT_SIGNED
    assert "there is none" in str(error)


def test_a_key_of_the_broker(world: World) -> None:
    right = payload(f"{world.name}:1", world.digest)
    signing.attach(world.simulator, world.digest, [(right, sign(KEY, right))])
    policy = {"default": [{"type": "sigstoreSigned", "keyPath": "kbs:///a/b/key"}]}
    assert world.guest(policy, world.reference, key=pem(KEY)) is None
    assert world.guest(policy, world.reference, key=pem(OTHER)) is not None


def test_nothing_is_fetched_of_a_rejected_image(world: World) -> None:
    assert world.guest({"default": REJECT}, world.reference) is not None
    assert world.simulator.paths() == [manifest_path("1")]


# --- hostile ---------------------------------------------------------------------------------------


def test_a_thousand_signatures_are_too_many(
    world: World, gpgs: tuple[Gpg, Gpg], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = payload(f"{world.name}:1", world.digest)
    signing.attach(world.simulator, world.digest, [(data, "AAAA")] * 1000)
    error = world.guest({"default": sigstore()}, world.reference)
    assert error is not None
    assert error.code is ErrorCode.LIMIT_EXCEEDED
    monkeypatch.setattr(limits, "SIGNATURES", 20)
    signing.lookaside(world.simulator, world.digest, [b"x"] * 1000)
    asked = len(world.simulator.requests)
    error = world.guest({"default": openpgp(gpgs[0].public())}, world.reference)
    assert error is not None
    assert error.code is ErrorCode.LIMIT_EXCEEDED
    assert len(world.simulator.requests) - asked < limits.SIGNATURES + 10


def test_an_endless_signature(world: World, gpgs: tuple[Gpg, Gpg]) -> None:
    signing.lookaside(world.simulator, world.digest, [b""])
    (path,) = [path for path in world.simulator.answers if path.startswith("/sigs")]
    world.simulator.answers[path] = Answer(b"x" * 65536, endless=True)
    error = world.guest({"default": openpgp(gpgs[0].public())}, world.reference)
    assert error is not None
    assert error.code is ErrorCode.LIMIT_EXCEEDED


def test_signatures_that_are_no_image(world: World) -> None:
    tag = f"{world.digest.replace(':', '-')}.sig"
    for body in (b"", b"[]", b'{"layers":7}'):
        world.simulator.answers[manifest_path(tag)] = Answer(body)
        error = world.guest({"default": sigstore()}, world.reference)
        assert error is not None
        assert error.code is ErrorCode.MANIFEST_INVALID
    world.simulator.answers[manifest_path(tag)] = Answer(b'{"layers":[]}')
    error = world.guest({"default": sigstore()}, world.reference)
    assert error is not None
    assert error.code is ErrorCode.MEDIA_TYPE_UNSUPPORTED


def test_a_registry_that_hides_signatures_behind_an_error(world: World) -> None:
    tag = f"{world.digest.replace(':', '-')}.sig"
    world.simulator.answers[manifest_path(tag)] = Answer(b"", 500)
    error = world.guest({"default": sigstore()}, world.reference)
    assert error is not None
    assert error.code is ErrorCode.REGISTRY_UNREACHABLE
