"""Whatever is wrong with the key broker, or with the VM in its eyes: an encrypted image ends in the phase
attest, with cause and remedy, in the time that docs/threat-model.md states, and nothing of it was unpacked.

The real image service against a real registry; the broker is real, or one that does what it is told.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest
from fixtures import direct
from fixtures import tpm as tpms
from fixtures.broker import DENY_ALL, RunningBroker, command, running_broker
from fixtures.workload import KEY_NAME, KEY_URI, Workload
from sealrun_agent.attestation.choice import Choice
from sealrun_agent.attestation.kbs import KeyBroker
from sealrun_agent.attestation.tpm import TpmAttester
from sealrun_agent.container.surroundings import Order
from sealrun_agent.errors import AgentError
from sealrun_agent.image.store import Store
from sealrun_agent.policy import Policy
from sealrun_agent.provision import RegistryImages, TenantKeys
from sealrun_protocol import init_data
from sealrun_protocol.errors import ERRORS, ErrorCode, Phase
from simulators.broker import SECRET, Send, Simulator, error, http, raw, simulated_broker

pytestmark = [pytest.mark.registry, pytest.mark.tpm]

REQUEST_SECONDS, PATIENCE_SECONDS = 1.0, 1.0  # in place of limits.BROKER_SECONDS and its patience
REQUESTS = 6  # the most that there are for one image; see kbs.py
BUSY_SECONDS = 20.0  # registry and broker, on a machine that does other things besides
TPM_ONLY = '[[resource]]\npath = "default/key/*"\ntee = ["tpm"]\n'


class Vm(NamedTuple):
    """An image service, and who it can meet. tpm: a VM that has one."""

    workload: Workload
    broker: RunningBroker
    liar: Simulator
    directory: Path
    tpm: Choice

    def document(self, url: str = "", *, sample: bool = True) -> bytes:
        """Init-data that allows the image, and names the real broker or the one at `url`."""
        registry, image = self.workload.registry.address, self.workload.encrypted
        more = f'insecure_registries = ["{registry}"]\nallowed = ["{image}"]\n'
        text = self.broker.init_data(keys=(KEY_URI,), sample=sample, more=more)
        if not url:
            return text
        certificate = f'cert = """\n{self.broker.ca_pem}"""'.encode()
        return text.replace(certificate, b"").replace(self.broker.url.encode(), url.encode())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, workload: Workload) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker"), policy=TPM_ONLY) as broker:
        broker.add_resource(KEY_NAME, workload.key.private.read_bytes())
        yield broker


@pytest.fixture
def vm(
    tmp_path: Path, workload: Workload, real: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Vm]:
    defaults = KeyBroker.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "seconds", BUSY_SECONDS)
    monkeypatch.setitem(defaults, "patience", PATIENCE_SECONDS)
    with ExitStack() as stack:
        transact = stack.enter_context(tpms.emulated(tmp_path))
        choice = Choice("/nonexistent")
        choice._found = TpmAttester(transact, "/nonexistent")
        liar = stack.enter_context(simulated_broker())
        yield Vm(workload, real, liar, tmp_path / "images", choice)
        real.write_policy(TPM_ONLY)
        (real.directory / "reference-values.json").unlink(missing_ok=True)


Arrange = Callable[[Vm], bytes]
"""Arranges what is wrong; the init-data."""


def down(vm: Vm) -> bytes:
    return vm.document("http://127.0.0.1:1")


def lying(step: str, order: Callable[[Send, bytes], None]) -> Arrange:
    def arrange(vm: Vm) -> bytes:
        vm.liar.orders[step] = order
        return vm.document(vm.liar.url)

    return arrange


def silence(_send: Send, _honest: bytes) -> None:
    time.sleep(3 * REQUEST_SECONDS)


def dripping(send: Send, _honest: bytes) -> None:
    send(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n")
    while True:
        send(b" ")
        time.sleep(0.1)


def endless(send: Send, _honest: bytes) -> None:
    send(b"HTTP/1.1 200 X\r\n\r\n")
    while True:
        send(b" " * 65536)


def another_certificate(vm: Vm) -> bytes:
    """That of the broker is of another CA than the init-data names."""
    other = vm.directory.with_name("other")
    command("init", str(other))
    return vm.document().replace(
        vm.broker.ca_pem.encode(), (other / "tls/ca.pem").read_text().encode()
    )


def kind_not_allowed(vm: Vm) -> bytes:
    vm.broker.write_policy(DENY_ALL)
    return vm.document()


def sample_not_allowed(vm: Vm) -> bytes:
    return vm.document(sample=False)


def missing_reference_values(vm: Vm) -> bytes:
    return vm.document(sample=False)


def wrong_reference_values(vm: Vm) -> bytes:
    command("add-reference", str(vm.broker.directory), "tpm_pcr04", "00" * 32)
    return vm.document(sample=False)


def a_kind_that_the_resource_is_not_for(vm: Vm) -> bytes:
    vm.broker.write_policy(TPM_ONLY.replace('"tpm"', '"snp"'))
    return vm.document(sample=False)


def no_such_key(vm: Vm) -> bytes:
    vm.broker.write_policy(
        "[evidence]\ninsecure_sample = true\n" + TPM_ONLY.replace("tpm", "sample")
    )
    return vm.document().replace(KEY_URI.encode(), b"kbs:///default/key/none")


EXPIRED = error(401, "TokenVerifierError", "the token has expired")
FOREIGN = error(401, "TokenVerifierError", "the token is not signed by this broker")
VERSION = error(401, "AttestationError", "KBS version is 0.5.0, not 0.4.0")
CASES: dict[str, tuple[Arrange, ErrorCode, str, int]] = {
    # what is wrong: (arrange, code, words of the cause, requests that may take their whole time)
    "down": (down, ErrorCode.BROKER_UNREACHABLE, "Connection refused", 1),
    "silent": (
        lying("auth", silence),
        ErrorCode.BROKER_UNREACHABLE,
        "no complete answer within",
        1,
    ),
    "silent-with-evidence": (
        lying("attest", silence),
        ErrorCode.BROKER_UNREACHABLE,
        "no complete answer within",
        2,
    ),
    "silent-with-a-key": (
        lying("resource", silence),
        ErrorCode.BROKER_UNREACHABLE,
        "no complete answer within",
        3,
    ),
    "slow": (lying("auth", dripping), ErrorCode.BROKER_UNREACHABLE, "no complete answer within", 1),
    "overloaded": (lying("auth", raw(http(503, b""))), ErrorCode.BROKER_UNREACHABLE, "503", 1),
    "garbage": (
        lying("auth", raw(b"\x16\3\1\r\n\r\n")),
        ErrorCode.BROKER_PROTOCOL,
        "BadStatusLine",
        1,
    ),
    "endless": (lying("attest", endless), ErrorCode.BROKER_PROTOCOL, "longer than", 2),
    "version": (lying("auth", raw(VERSION)), ErrorCode.BROKER_PROTOCOL, "0.5.0", 1),
    "expired-token": (lying("resource", raw(EXPIRED)), ErrorCode.KEY_DENIED, "has expired", 6),
    "foreign-token": (lying("resource", raw(FOREIGN)), ErrorCode.KEY_DENIED, "not signed by", 6),
    "certificate": (another_certificate, ErrorCode.BROKER_UNTRUSTED, "certificate", 1),
    "sample": (kind_not_allowed, ErrorCode.EVIDENCE_REFUSED, "sample evidence", 2),
    "no-tee": (sample_not_allowed, ErrorCode.SAMPLE_NOT_ALLOWED, "no TEE", 0),
    "no-references": (missing_reference_values, ErrorCode.KEY_DENIED, KEY_NAME, 3),
    "references": (wrong_reference_values, ErrorCode.KEY_DENIED, KEY_NAME, 3),
    "kind": (a_kind_that_the_resource_is_not_for, ErrorCode.KEY_DENIED, KEY_NAME, 3),
    "no-key": (no_such_key, ErrorCode.KEY_NOT_FOUND, "default/key/none", 3),
}
WITH_TPM = ("no-references", "references", "kind")


@pytest.mark.parametrize("case", CASES)
def test_fails_closed(vm: Vm, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrange, code, cause, requests = CASES[case]
    if case.startswith(("silent", "slow")):  # all others answer, on a busy machine after a while
        monkeypatch.setitem(KeyBroker.__init__.__kwdefaults__, "seconds", REQUEST_SECONDS)
    policy = Policy(init_data.parse(arrange(vm)), "tpm" if case in WITH_TPM else "none")
    choice = vm.tpm if case in WITH_TPM else Choice("/nonexistent")
    choice.bind(policy.init_data)
    images = RegistryImages(policy, choice, lambda: Store(str(vm.directory)))
    phases = []
    order = Order(
        "c1",
        vm.workload.encrypted,
        (),
        direct.dial,
        lambda phase, _text, _done, _total: phases.append(phase),
    )
    started = time.monotonic()
    with pytest.raises(AgentError) as caught:
        images.prepare(order)
    bound = requests * REQUEST_SECONDS + PATIENCE_SECONDS + BUSY_SECONDS
    assert time.monotonic() - started < bound
    assert requests <= REQUESTS
    assert (caught.value.phase, caught.value.code) == (Phase.ATTEST, code)
    assert cause in str(caught.value)
    assert ERRORS[code].remedy
    assert [path for path in vm.directory.rglob("*") if not path.is_dir()] == []
    assert list((vm.directory / "layers").iterdir()) == []


def test_what_is_right_is_opened(vm: Vm) -> None:
    """Without it nothing of the above would say anything: the same way, and no cause to refuse."""
    document = init_data.parse(vm.document(vm.liar.url))
    order = Order("c1", vm.workload.encrypted, (), direct.dial, lambda *_: None)
    with closing(TenantKeys(order, document, Choice("/nonexistent"))) as keys:
        assert keys.private() == [SECRET]
    assert vm.liar.steps() == ["auth", "attest", "resource"]
