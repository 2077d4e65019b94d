"""Init-data: exact digests, strict reading of what is ours, bounded decoding."""

import base64
import gzip
import hashlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_protocol import limits
from sealrun_protocol.init_data import (
    ABSENT,
    Broker,
    Container,
    Host,
    InitDataInvalid,
    decode_annotation,
    encode_annotation,
    endpoints,
    parse,
)

EXAMPLE = Path(__file__).resolve().parents[3] / "config/init-data.example.toml"
CA = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"


def container(aa: str = "", ours: str = "", *, algorithm: str = "sha256", more: str = "") -> bytes:
    documents = "".join(
        f"\"{name}\" = '''\n{text}'''\n"
        for name, text in (("aa.toml", aa), ("sealrun.toml", ours))
        if text
    )
    return f'version = "0.1.0"\nalgorithm = "{algorithm}"\n[data]\n{documents}{more}'.encode()


def kbs(url: str, cert: str = "") -> str:
    return f'[token_configs.kbs]\nurl = "{url}"\n' + (f'cert = """{cert}"""\n' if cert else "")


def test_everything_of_a_complete_document() -> None:
    text = container(
        "[token_configs.coco_as]\nurl = 'http://elsewhere'\n[eventlog_config]\ninit_pcr = 17\n"
        + kbs("https://broker.example.com:8443/prefix/", CA)
        + "tee_key_algorithm = 'RSA-OAEP-256'\n",
        "[attestation]\ninsecure_sample_evidence = true\n[image]\nallowed = ['r.test/a']\n"
        "decryption_keys = ['kbs:///default/key/one', 'kbs://host:1/a/b/c']\n"
        f'insecure_registries = [\'localhost:5000\', \'[::1]:5000\']\nca_certificates = """{CA}"""\n',
        more="\"cdh.toml\" = '[kbc]'\n\"other.json\" = 'y'\n",
    )
    read = parse(text)
    assert read.text == text
    assert read.digest == hashlib.sha256(text).digest()
    assert read.broker == Broker(
        "https://broker.example.com:8443/prefix",
        True,
        "broker.example.com",
        8443,
        "/prefix",
        CA,
        "RSA-OAEP-256",
    )
    assert read.attestation.insecure_sample_evidence is True
    assert read.image.allowed == ("r.test/a",)
    assert read.image.decryption_keys == ("kbs:///default/key/one", "kbs://host:1/a/b/c")
    assert read.image.insecure_registries == ("localhost:5000", "[::1]:5000")
    assert read.image.ca_certificates == CA
    assert read.ignored == ("cdh.toml", "other.json")
    assert endpoints(read) == (("broker.example.com", 8443),)


@pytest.mark.parametrize(
    "pattern",
    [
        "r.test/a",
        "r.test:5000/a/b_c/d.e-f:V1.0_x",
        f"r.test/a:1@sha256:{'0' * 64}",
        f"[::1]:5000/a@sha256:{'f' * 64}",
        "localhost/a",
        "127.0.0.1:5000/*",
        "docker.io/team/*",
        "docker.io/*",
        "docker.io/library/alpine:3",
    ],
)
def test_images_that_can_be_allowed(pattern: str) -> None:
    assert parse(container(ours=f"[image]\nallowed = ['{pattern}']\n")).image.allowed == (pattern,)


def test_what_is_not_said_protects() -> None:
    read = parse(container())
    assert read.broker is None
    assert read.attestation.insecure_sample_evidence is False
    assert read.image.allowed is None
    assert read.image.decryption_keys == ()
    assert endpoints(read) == ()
    assert ABSENT.attestation.insecure_sample_evidence is False
    assert ABSENT.host.insecure_shared_root is False
    assert ABSENT.broker is None
    assert read.image.insecure_unpinned_keys is False
    assert read.container == Container()
    assert (read.container.commands, read.container.environment) == ((), ())
    assert (read.container.allow_exec, read.container.insecure_any_process) == (False, False)
    assert read.container.share_pid is False


def test_what_may_run() -> None:
    ours = "[container]\ncommands = [['/bin/a', 'x'], ['b']]\nenvironment = ['A', 'B_*']\n"
    read = parse(container(ours=ours))
    assert read.container.commands == (("/bin/a", "x"), ("b",))
    assert read.container.environment == ("A", "B_*")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("'policy.rego' = 'package agent_policy'", "policy.rego: this agent does not obey it"),
        (
            "'cdh.toml' = '''[image]\nsigstore_config_uri = 1'''",
            "cdh.toml: image: 'sigstore_config_uri'",
        ),
        ("'cdh.toml' = 'x'", "cdh.toml: it is not TOML"),
    ],
)
def test_a_protection_that_would_not_be_given_is_refused(more: str, said: str) -> None:
    with pytest.raises(InitDataInvalid, match=said):
        parse(container(more=more + "\n"))


def test_the_shipped_example_is_accepted() -> None:
    read = parse(EXAMPLE.read_bytes())
    assert read.broker is not None
    assert read.broker.port == 8080
    assert read.attestation.insecure_sample_evidence is False


@pytest.mark.parametrize(
    ("written", "name", "size"),
    [
        ("sha256", "sha256", 32),
        ("sha-256", "sha256", 32),
        ("SHA384", "sha384", 48),
        ("sha-384", "sha384", 48),
        ("sha512", "sha512", 64),
    ],
)
def test_the_digest_is_that_of_the_exact_bytes(written: str, name: str, size: int) -> None:
    text = container(algorithm=written) + b"# \xe2\x82\xac\r\n"
    read = parse(text)
    assert read.algorithm == name
    assert len(read.digest) == size
    assert read.digest == hashlib.new(name, text).digest()
    assert parse(text + b"\n").digest != read.digest


def test_digest_vector() -> None:
    text = b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'
    # printf 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n' | sha256sum
    assert (
        parse(text).digest.hex()
        == "af398df379eb475aff9f02cd056d0d1f5d496b7a073927cb3ea92407d8ad61a3"
    )


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://a", "a", 443),
        ("http://a", "a", 80),
        ("https://127.0.0.1:8080", "127.0.0.1", 8080),
        ("https://[::1]:65535/", "::1", 65535),
        ("http://a_b-c.d:1/x/y", "a_b-c.d", 1),
    ],
)
def test_endpoints_of_a_broker_url(url: str, host: str, port: int) -> None:
    assert endpoints(parse(container(kbs(url)))) == ((host, port),)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a:1",
        "ftp://a",
        "HTTPS://a",
        "https://",
        "https://:1",
        "https://user@a",
        "https://user:secret@a:1",
        "https://a:0",
        "https://a:65536",
        "https://a:x",
        "https://a:",
        "https://a b",
        "https://a?x=1",
        "https://a/#f",
        "https://a/../b",
        "https://a//b",
        "https://a/%2e",
        "https://[::1",
        "https://[v1.a]:1",
        "https://a\\nHost: b",
        "https://-a",
        "https://a-",
        "https://a..b",
        "https://a.",
        f"https://{'a' * 64}",
        f"https://{'.'.join(['a' * 50] * 6)}",
        "https://é",
    ],
)
def test_broker_urls_that_are_none(url: str) -> None:
    with pytest.raises(InitDataInvalid, match=r"token_configs\.kbs\.url"):
        parse(container(kbs(url)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "version must be"),
        (b"\xff", "not UTF-8"),
        (b"version", "not TOML"),
        (b'version = "0.2.0"\nalgorithm="sha256"\n[data]\n', "version must be"),
        (b'version = "0.1.0"\n[data]\n', "algorithm must be one of sha256, sha384, sha512"),
        (container(algorithm="md5"), "algorithm must be one of"),
        (container(algorithm="sm3"), "algorithm must be one of"),
        (b'version = "0.1.0"\nalgorithm = ["sha256"]\n[data]\n', "algorithm must be one of"),
        (b'version = "0.1.0"\nalgorithm = "sha256"\n', "[data] must be a table"),
        (b'version = "0.1.0"\nalgorithm = "sha256"\ndata = 1\n', "[data] must be a table"),
        (container(more="x = 1\n"), "[data] must be a table of strings"),
        (container(more="aa.toml = ''\n"), "quote a name that has a dot"),
        (container(more="[extra]\n"), "unknown name 'extra'"),
        (b"algoritm = 1\n" + container(), "did you mean algorithm?"),
        (container(more="\"sealrn.toml\" = ''\n"), "did you mean sealrun.toml?"),
        (container(more="\"Sealrun.toml\" = ''\n"), "did you mean sealrun.toml?"),
        (container(more="".join(f'd{n} = ""\n' for n in range(65))), "more than 64 documents"),
        (container("x"), "aa.toml: it is not TOML"),
        (container("token_configs = 1\n"), "token_configs must be a table"),
        (container("[token_configs]\nkbs = 1\n"), "token_configs.kbs must be a table"),
        (container("[token_configs.kbs]\n"), "token_configs.kbs.url must be a string"),
        (container("[token_configs.kbs]\nurl = 1\n"), "token_configs.kbs.url must be a string"),
        (container(kbs("https://a", "not a certificate")), "cert must be certificates in PEM"),
        (container(kbs("http://a", CA)), "cert is given, but url is plain http"),
        (
            container(kbs("https://a") + "tee_key_algorithm = 'RSA1_5'\n"),
            "tee_key_algorithm: 'RSA1_5' is none of ECDH-ES+A256KW-P256",
        ),
        (container(kbs("https://a") + "tee_key_algorithm = 1\n"), "'1' is none of"),
        (container(ours="x"), "sealrun.toml: it is not TOML"),
        (container(ours="[imagee]\n"), "'imagee', did you mean image?"),
        (container(ours="image = 1\n"), "sealrun.toml: image must be a table"),
        (container(ours="[image]\nallow = []\n"), "'allow', did you mean allowed?"),
        (container(ours="[workload]\napi = ['all']\n"), "workload.api: 'all' is none of resource"),
        (container(ours="[workload]\nresources = []\n"), "sealrun.toml: workload"),
        (container(ours="[image]\nzzz = []\n"), "known are allowed, decryption_keys"),
        (container(ours="[image]\nallowed = 'a'\n"), "image.allowed: expected `array"),
        *(
            (container(ours=f"[image]\nallowed = ['{pattern}']\n"), words)
            for pattern, words in (
                ("app", "allowed: 'app' is none of registry/repository[:tag], "),
                ("team/app", "is none of"),
                ("*", "is none of"),
                ("r.test", "is none of"),
                ("r.test/*/app", "is none of"),
                ("R.test/app", "is none of"),
                ("https://r.test/app", "is none of"),
                ("r.test/app@sha256:12", "is none of"),
                ("r.test/" + "a" * 600, "is none of"),
                ("docker.io/alpine:3", "matches nothing: the name is docker.io/library/"),
                ("index.docker.io/library/alpine", "matches nothing"),
            )
        ),
        (container(ours="[container]\ncommands = [[]]\n"), "commands: one of them is empty"),
        (container(ours="[container]\nhooks = [['/a'], []]\n"), "hooks: one of them is empty"),
        (container(ours="[container]\nenvironment = ['A=b']\n"), "'A=b' is no variable's name"),
        (container(ours="[image]\nallowed = [1]\n"), "image.allowed[0]: expected `str`"),
        (
            container(ours="[attestation]\ninsecure_sample_evidence = 1\n"),
            "attestation.insecure_sample_evidence: expected `bool`, got `int`",
        ),
        (
            container(ours="[attestation]\ninsecure_sample_evidance = true\n"),
            "did you mean insecure_sample_evidence?",
        ),
        (container(ours="[image]\ndecryption_keys = ['a']\n"), "'a' is not kbs:///"),
        (
            container(ours="[image]\ndecryption_keys = ['kbs:///a/../c']\n"),
            "is not repository/type/tag",
        ),
        (
            container(ours="[image]\ninsecure_registries = ['http://a']\n"),
            "'http://a' is not host[:port]",
        ),
        (container(ours="[image]\nca_certificates = 'a'\n"), "ca_certificates must be"),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"9" * 10_000, "not TOML"),
        (b"#" * (limits.INIT_DATA_BYTES + 1), "longer than"),
    ],
)
def test_refused_with_one_line_that_names_the_place(text: bytes, said: str) -> None:
    with pytest.raises(InitDataInvalid) as caught:
        parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_of_many_parts_costs_no_time() -> None:
    started = time.process_time()
    with pytest.raises(InitDataInvalid, match="more than 1000 dots"):
        parse(b"a." * (limits.INIT_DATA_BYTES // 2 - 2) + b"a=1")
    assert time.process_time() - started < 5


# --- the annotation ------------------------------------------------------------------------------


@given(st.binary(max_size=2000).filter(lambda data: not data.startswith(b"\x1f\x8b")))
def test_what_was_encoded_is_decoded(text: bytes) -> None:
    annotation = encode_annotation(text)
    assert annotation == encode_annotation(text)
    assert decode_annotation(annotation) == text
    assert gzip.decompress(base64.b64decode(annotation)) == text
    assert decode_annotation(base64.b64encode(text).decode()) == text
    assert decode_annotation(base64.encodebytes(text).decode()) == text


def test_what_is_left_to_the_host() -> None:
    assert parse(container(ours="[host]\ninsecure_shared_root = true\n")).host.insecure_shared_root
    assert not parse(container(ours="")).host.insecure_shared_root
    with pytest.raises(InitDataInvalid, match=r"host\.insecure_shared_root: expected `bool`"):
        parse(container(ours="[host]\ninsecure_shared_root = 1\n"))


def test_where_the_host_may_share() -> None:
    def host(*places: str) -> Host:
        text = f"[host]\ninsecure_shared_directories = {list(places)}\n"
        return parse(container(ours=text)).host

    assert not ABSENT.host.may_share_at("/data")
    assert not host().may_share_at("/")
    some = host("/data/", "/srv//app")
    for place in ("/data", "/data/", "/data/sub", "//data", "/srv/app/x"):
        assert some.may_share_at(place), place
    for place in ("/", "/srv", "/database", "/etc/data", "/srv/application"):
        assert not some.may_share_at(place), place
    assert host("/").may_share_at("/usr/bin")
    for wrong in ("", "data", "./data", "/data/../etc", "/a/./b"):
        with pytest.raises(InitDataInvalid, match=r"insecure_shared_directories: '.*' is not an"):
            host(wrong)


def test_where_volumes_may_be() -> None:
    assert ABSENT.container.volumes == ()
    given = parse(container(ours="[container]\nvolumes = ['/data', '/cache/']\n"))
    assert given.container.volumes == ("/data", "/cache/")
    for wrong in ("", "data", "/data/../etc"):
        with pytest.raises(InitDataInvalid, match=r"container\.volumes: '.*' is not an absolute"):
            parse(container(ours=f"[container]\nvolumes = ['{wrong}']\n"))


def test_kata_s_form_with_a_file_name_and_a_time() -> None:
    packed = gzip.compress(container(), mtime=1_700_000_000)
    assert decode_annotation(base64.b64encode(packed).decode()) == container()


def test_a_bomb_is_not_unpacked() -> None:
    bomb = base64.b64encode(gzip.compress(bytes(500 * limits.MIB), 9)).decode()
    assert len(bomb) < limits.INIT_DATA_BYTES, "only what it unpacks to is too long"
    started = time.process_time()
    with pytest.raises(InitDataInvalid, match="longer than"):
        decode_annotation(bomb)
    assert time.process_time() - started < 1


def test_the_largest_text_is_accepted_and_the_next_is_not() -> None:
    largest = bytes(limits.INIT_DATA_BYTES)
    for encode in (encode_annotation, lambda text: base64.b64encode(text).decode()):
        assert decode_annotation(encode(largest)) == largest
        with pytest.raises(InitDataInvalid, match="longer than"):
            decode_annotation(encode(largest + b"\0"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("*", "not base64"),
        ("YWJ", "not base64"),
        ("é", "not base64"),
        ("A" * (2 * limits.INIT_DATA_BYTES + 1), "longer than"),
        (base64.b64encode(b"\x1f\x8b garbage").decode(), "not gzip"),
        (base64.b64encode(gzip.compress(b"abc", mtime=0)[:-1]).decode(), "not one complete gzip"),
        (base64.b64encode(gzip.compress(b"abc", mtime=0) + b"x").decode(), "not one complete gzip"),
        (base64.b64encode(gzip.compress(b"a", mtime=0) * 2).decode(), "not one complete gzip"),
    ],
)
def test_annotations_that_are_none(value: str, said: str) -> None:
    with pytest.raises(InitDataInvalid, match=said):
        decode_annotation(value)


REGISTRIES = """
[image]
registry_endpoints = ["auth.example:443", "[::1]:5001"]
authenticated_registry_credentials_uri = "kbs:///default/credential/test"
[image.image_pull_proxy]
https_proxy = "http://proxy.example:3128"
no_proxy = "10.0.0.1, .corp.example"
[image.signature_lookaside]
"r.example" = "https://sigs.example/store"
[[image.registry_config.registry]]
location = "r.example"
[[image.registry_config.registry.mirror]]
location = "m.example:5000/copies"
pull-from-mirror = "digest-only"
"""


def test_what_the_relay_is_to_open_for_registries() -> None:
    read = parse(container(ours=REGISTRIES))
    assert set(endpoints(read)) == {
        ("auth.example", 443), ("::1", 5001), ("proxy.example", 3128), ("sigs.example", 443),
    }  # fmt: skip
    assert read.image.registry_config.registry[0].mirror[0].pull_from_mirror == "digest-only"
    proxy = read.image.image_pull_proxy
    assert str(proxy.of("r.example", 443, tls=True)) == "proxy.example:3128"


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ("registry_endpoints = ['a.example']", "image.registry_endpoints: 'a.example' is not host:port"),
        ("registry_config = {registry = [{prefx = 'a'}]}", "registry_config: registry: unknown name"),
        ("image_pull_proxy = {https_proxi = 'a'}", "unknown name 'https_proxi'"),
        ("image_pull_proxy = {https_proxy = 'socks://a.example'}", "https_proxy: it is not http"),
        ("signature_lookaside = {'' = 'file:///x'}", "is not http"),
        ("image_security_policy_uri = 'file:///x'", "image_security_policy_uri"),
        ("image_security_policy = '{}'\nimage_security_policy_uri = 'kbs:///a/b/c'", "exclude"),
        ("authenticated_registry_credentials_uri = 'x'", "image.authenticated_registry"),
    ],
)  # fmt: skip
def test_registries_that_are_refused(ours: str, said: str) -> None:
    with pytest.raises(InitDataInvalid, match=said):
        parse(container(ours=f"[image]\n{ours}\n"))


def test_a_proxy_s_password_is_not_told() -> None:
    with pytest.raises(InitDataInvalid) as caught:
        parse(container(ours="[image.image_pull_proxy]\nhttp_proxy = 'http://a:secret@b/c'\n"))
    assert "secret" not in str(caught.value)


def test_what_coco_s_data_hub_says_of_images() -> None:
    hub = """'''
socket = "unix:///x"
[image]
max_concurrent_layer_downloads_per_image = 3
authenticated_registry_credentials_uri = "kbs:///default/credential/test"
extra_root_certificates = ["-----BEGIN CERTIFICATE-----"]
[[image.registry_config.registry]]
location = "r.example"
blocked = true
'''"""
    image = parse(container(more=f"'cdh.toml' = {hub}")).image
    assert image.authenticated_registry_credentials_uri == "kbs:///default/credential/test"
    assert image.registry_config.registry[0].blocked
    assert "BEGIN" in image.ca_certificates
