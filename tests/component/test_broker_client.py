"""The agent's client against the real broker over TLS: what is given out, and what is not."""

import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from fixtures import direct
from fixtures.broker import ALLOW_SAMPLE, DENY_ALL, RunningBroker, running_broker, served
from sealrun_agent.attestation.kbs import KeyBroker
from sealrun_agent.attestation.sample import SampleAttester
from sealrun_agent.errors import AttestError, DialFailed
from sealrun_broker import base64url
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import KEYS, parse

SECRET = b"-----BEGIN PRIVATE KEY-----\n" + bytes(range(256))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker")) as running:
        running.add_resource("default/key/app", SECRET)
        running.add_resource("default/key/other", b"other")
        running.add_resource("secret/key/app", b"not for samples")
        yield running


@pytest.fixture(autouse=True)
def _policy(broker: RunningBroker) -> Iterator[None]:
    yield
    broker.write_policy(ALLOW_SAMPLE)


Client = Callable[..., KeyBroker]


@pytest.fixture
def client() -> Iterator[Client]:
    """Makes clients, and closes them after the test."""
    with ExitStack() as clients:

        def new(text: bytes, attester: SampleAttester | None = None) -> KeyBroker:
            init_data = parse(text)
            assert init_data.broker is not None
            return clients.enter_context(
                closing(
                    KeyBroker(
                        init_data.broker, attester or SampleAttester(), direct.dial, init_data
                    )
                )
            )

        yield new


def refused(kbs: KeyBroker, uri: str) -> AttestError:
    with pytest.raises(AttestError) as caught:
        kbs.resource(uri)
    assert "\n" not in str(caught.value)
    return caught.value


def count(broker: RunningBroker, event: str) -> int:
    return sum(f" {event} " in line for line in broker.log().splitlines())


def test_two_resources_with_one_handshake(broker: RunningBroker, client: Client) -> None:
    before = count(broker, "attest")
    kbs = client(broker.init_data())
    assert kbs.resource("kbs:///default/key/app") == SECRET
    assert kbs.resource("kbs://ignored.example.com:1/default/key/other") == b"other"
    kbs.close()
    assert count(broker, "attest") == before + 1


def test_a_closed_client_attests_anew(broker: RunningBroker, client: Client) -> None:
    before = count(broker, "attest")
    kbs = client(broker.init_data())
    assert kbs.resource("kbs:///default/key/app") == SECRET
    kbs.close()
    assert kbs.resource("kbs:///default/key/app") == SECRET
    kbs.close()
    assert count(broker, "attest") == before + 2


def test_a_connection_that_the_broker_closed_is_made_again(
    broker: RunningBroker, client: Client
) -> None:
    before = count(broker, "attest")
    kbs = client(broker.init_data())
    assert kbs.resource("kbs:///default/key/app") == SECRET
    time.sleep(6)  # longer than the server keeps an idle connection
    assert kbs.resource("kbs:///default/key/app") == SECRET
    assert count(broker, "attest") == before + 1, "the session outlives the connection"


@pytest.mark.parametrize("key", KEYS)
def test_all_kinds_of_keys(broker: RunningBroker, client: Client, key: str) -> None:
    text = broker.init_data().replace(
        b"[token_configs.kbs]\n", f'[token_configs.kbs]\ntee_key_algorithm = "{key}"\n'.encode()
    )
    assert client(text).resource("kbs:///default/key/app") == SECRET


def test_a_token_for_the_workload(broker: RunningBroker, client: Client) -> None:
    kbs = client(broker.init_data())
    token, key = kbs.token()
    submod = json.loads(base64url.decode(token.split(".")[1]))["submods"]["cpu0"]
    annotated = submod["ear.veraison.annotated-evidence"]
    assert annotated["runtime_data_claims"]["tee-pubkey"] == key.public
    assert kbs.token()[0] != token, "it is a fresh one"


def test_a_broker_that_lost_its_sessions_takes_the_token(
    broker: RunningBroker, tmp_path: Path
) -> None:
    """Another process on the same directory, as after a restart or behind a balancer."""
    with served(broker.directory, tmp_path) as other:
        ports = {broker.port: broker.port}

        def dial(host: str, port: int) -> socket.socket:
            return direct.dial(host, ports[port])

        init_data = parse(broker.init_data())
        assert init_data.broker is not None
        before = count(broker, "attest")
        with closing(KeyBroker(init_data.broker, SampleAttester(), dial, init_data)) as kbs:
            assert kbs.resource("kbs:///default/key/app") == SECRET
            ports[broker.port] = other
            kbs._http.close()
            assert kbs.resource("kbs:///default/key/other") == b"other"
        assert count(broker, "attest") == before + 1


def test_a_broker_that_is_starting_is_waited_for(broker: RunningBroker) -> None:
    failures = [DialFailed("connection refused", refused=False)] * 2

    def dial(host: str, port: int) -> socket.socket:
        if failures:
            raise failures.pop()
        return direct.dial(host, port)

    init_data = parse(broker.init_data())
    assert init_data.broker is not None
    with closing(KeyBroker(init_data.broker, SampleAttester(), dial, init_data)) as kbs:
        assert kbs.resource("kbs:///default/key/app") == SECRET


def test_what_the_relay_refuses_is_not_tried_again(broker: RunningBroker) -> None:
    asked = []

    def dial(host: str, port: int) -> socket.socket:
        asked.append(port)
        raise DialFailed("not open for the guest", refused=True)

    init_data = parse(broker.init_data())
    assert init_data.broker is not None
    with closing(KeyBroker(init_data.broker, SampleAttester(), dial, init_data)) as kbs:
        assert refused(kbs, "kbs:///default/key/app").code == ErrorCode.ENDPOINT_REFUSED
    assert len(asked) == 1


def test_a_missing_key(broker: RunningBroker, client: Client) -> None:
    error = refused(client(broker.init_data()), "kbs:///default/key/none")
    assert error.code == ErrorCode.KEY_NOT_FOUND
    assert "there is no resource default/key/none" in str(error)


@pytest.mark.parametrize("name", ["secret/key/app", "secret/key/none"])
def test_a_denied_key_does_not_tell_whether_it_exists(
    broker: RunningBroker, client: Client, name: str
) -> None:
    error = refused(client(broker.init_data()), f"kbs:///{name}")
    assert error.code == ErrorCode.KEY_DENIED
    assert f"does not give {name}" in str(error)


def test_sample_evidence_that_the_broker_does_not_allow(
    broker: RunningBroker, client: Client
) -> None:
    broker.write_policy(DENY_ALL)
    error = refused(client(broker.init_data()), "kbs:///default/key/app")
    assert error.code == ErrorCode.EVIDENCE_REFUSED
    assert "does not allow sample evidence" in str(error)


def test_revoked_while_the_session_lasts(broker: RunningBroker, client: Client) -> None:
    kbs = client(broker.init_data())
    assert kbs.resource("kbs:///default/key/app") == SECRET
    broker.write_policy(ALLOW_SAMPLE.replace("default/key/*", "default/key/other"))
    assert refused(kbs, "kbs:///default/key/app").code == ErrorCode.KEY_DENIED
    assert kbs.resource("kbs:///default/key/other") == b"other"


def test_a_broken_policy_gives_nothing_out(broker: RunningBroker, client: Client) -> None:
    kbs = client(broker.init_data())
    assert kbs.resource("kbs:///default/key/app") == SECRET
    broker.write_policy(ALLOW_SAMPLE + "[[resources]]\n")
    assert refused(kbs, "kbs:///default/key/app").code == ErrorCode.KEY_DENIED
    error = refused(client(broker.init_data()), "kbs:///default/key/app")
    assert error.code == ErrorCode.EVIDENCE_REFUSED


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_a_key_for_one_init_data_only(
    broker: RunningBroker, client: Client, algorithm: str
) -> None:
    text = broker.init_data()
    digest = hashlib.new(algorithm, text).hexdigest()
    broker.write_policy(f'{ALLOW_SAMPLE}init_data = ["{digest}"]\n')
    assert client(text).resource("kbs:///default/key/app") == SECRET
    changed = text + b"# a byte more\n"
    assert refused(client(changed), "kbs:///default/key/app").code == ErrorCode.KEY_DENIED


def test_the_wrong_ca(broker: RunningBroker, client: Client, tmp_path: Path) -> None:
    with running_broker(tmp_path) as other:
        init_data = broker.init_data().replace(broker.ca_pem.encode(), other.ca_pem.encode())
    before = count(broker, "auth")
    error = refused(client(init_data), "kbs:///default/key/app")
    assert error.code == ErrorCode.BROKER_UNTRUSTED
    assert count(broker, "auth") == before, "nothing was said to it"


def test_without_a_ca_the_machine_s_roots_are_all(broker: RunningBroker, client: Client) -> None:
    init_data = broker.init_data().replace(f'cert = """\n{broker.ca_pem}"""'.encode(), b"")
    assert b"CERTIFICATE" not in init_data
    error = refused(client(init_data), "kbs:///default/key/app")
    assert error.code == ErrorCode.BROKER_UNTRUSTED


def test_a_certificate_for_another_name(broker: RunningBroker) -> None:
    init_data = parse(broker.init_data().replace(b"//127.0.0.1:", b"//broker.example.com:"))
    assert init_data.broker is not None

    def dial(host: str, port: int) -> socket.socket:
        assert host == "broker.example.com"
        return direct.dial(broker.host, port)

    with closing(KeyBroker(init_data.broker, SampleAttester(), dial, init_data)) as kbs:
        error = refused(kbs, "kbs:///default/key/app")
    assert error.code == ErrorCode.BROKER_UNTRUSTED


@pytest.mark.parametrize(
    ("by_relay", "code"),
    [(True, ErrorCode.ENDPOINT_REFUSED), (False, ErrorCode.BROKER_UNREACHABLE)],
)
def test_no_connection(broker: RunningBroker, by_relay: bool, code: ErrorCode) -> None:
    init_data = parse(broker.init_data())
    assert init_data.broker is not None

    def dial(host: str, port: int) -> socket.socket:
        raise DialFailed(f"{host}:{port}: no way", refused=by_relay)

    error = refused(
        KeyBroker(init_data.broker, SampleAttester(), dial, init_data), "kbs:///default/key/app"
    )
    assert error.code == code
    assert "no way" in str(error)


class TamperedAttester(SampleAttester):
    """Evidence that is bound to something else."""

    def evidence(self, report_data: bytes) -> dict[str, object]:
        return super().evidence(report_data[:-1] + bytes([report_data[-1] ^ 1]))


def test_tampered_evidence(broker: RunningBroker, client: Client) -> None:
    error = refused(client(broker.init_data(), TamperedAttester()), "kbs:///default/key/app")
    assert error.code == ErrorCode.EVIDENCE_REFUSED
    assert "report data does not match" in str(error)


def test_nothing_listens(client: Client, tmp_path: Path) -> None:
    with running_broker(tmp_path) as gone:
        init_data = gone.init_data()
    error = refused(client(init_data), "kbs:///default/key/app")
    assert error.code == ErrorCode.BROKER_UNREACHABLE
    assert "Connection refused" in str(error)


def test_plain_http_must_be_meant_by_both(client: Client, tmp_path: Path) -> None:
    with running_broker(tmp_path, "--insecure-http") as plain:
        plain.add_resource("default/key/app", SECRET)
        text = plain.init_data()
        with_cert = text.replace(b"http://", b"https://")
        without_cert = text.replace(f'cert = """\n{plain.ca_pem}"""'.encode(), b"")
        assert client(without_cert).resource("kbs:///default/key/app") == SECRET
        error = refused(client(with_cert), "kbs:///default/key/app")
    assert error.code == ErrorCode.BROKER_UNTRUSTED


def test_an_expired_session_is_renewed(client: Client, tmp_path: Path) -> None:
    with running_broker(tmp_path, "--session-seconds", "2") as broker:
        broker.add_resource("default/key/app", SECRET)
        kbs = client(broker.init_data())
        assert kbs.resource("kbs:///default/key/app") == SECRET
        before = count(broker, "attest")  # a busy machine can need more than one session for it
        time.sleep(5)  # the token ends a second after the session
        assert kbs.resource("kbs:///default/key/app") == SECRET
        assert count(broker, "attest") > before
