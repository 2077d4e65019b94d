"""What is not allowed is denied."""

import os
from pathlib import Path

import pytest
from sealrun_broker.errors import BrokerError
from sealrun_broker.policy import Policy, PolicyFile, parse
from sealrun_protocol.resource_uri import parse_name

A, B = "a" * 64, "b" * 96


def allows(text: str, name: str = "default/key/app", tee: str = "snp", digests: str = "") -> bool:
    return parse(text.encode()).allows(parse_name(name), tee, tuple(digests.split()))


def rule(path: str, more: str = "") -> str:
    return f'[[resource]]\npath = "{path}"\n{more}\n'


def test_nothing_is_allowed_by_itself() -> None:
    assert not allows("")
    assert not Policy().evidence.insecure_sample
    assert not parse(b"[evidence]\n").evidence.insecure_sample


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("default/key/app", "default/key/app", True),
        ("default/key/app", "default/key/app2", False),
        ("default/key/*", "default/key/app", True),
        ("default/key/*", "default/key2/app", False),
        ("*/*/*", "default/key/app", True),
        ("default/key/a*-*.pem", "default/key/app-1.pem", True),
        ("default/key/a*-*.pem", "default/key/app-1xpem", False),
        ("default/key/a.p", "default/key/app", False),
        ("default/*/app", "default/key/app", True),
    ],
)
def test_paths(pattern: str, name: str, covered: bool) -> None:
    assert allows(rule(pattern), name) is covered


def test_kinds_of_evidence() -> None:
    text = rule("*/*/*", 'tee = ["snp", "tdx"]')
    assert allows(text, tee="tdx")
    assert not allows(text, tee="sample")
    assert not allows(rule("*/*/*", "tee = []"))


def test_init_data() -> None:
    text = rule("*/*/*", f'init_data = ["{A}", "{B}"]')
    assert allows(text, digests=f"x {B}")
    assert not allows(text, digests="c" * 64)
    assert not allows(text)
    assert not allows(rule("*/*/*", "init_data = []"), digests=A)


def test_one_rule_is_enough_but_it_must_fit_in_all() -> None:
    text = rule("a/b/c", 'tee = ["snp"]') + rule("*/*/*", f'init_data = ["{A}"]')
    assert allows(text, "a/b/c", "snp")
    assert allows(text, "x/y/z", "tdx", A)
    assert not allows(text, "a/b/c", "tdx")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff", "utf-8"),
        (b"x", "cannot read the policy"),
        (b"[evidnce]\n", "unknown field `evidnce`"),
        (b"[evidence]\nsample = true\n", "unknown field `sample`"),
        (b"[evidence]\ninsecure_sample = 1\n", "Expected `bool`"),
        (b"[[resource]]\n", "missing required field `path`"),
        (b'[[resource]]\npath = "a/b/c"\ntees = []\n', "unknown field `tees`"),
        (b'[[resource]]\npath = "a/b"\n', "'a/b' is not repository/type/tag"),
        (b'[[resource]]\npath = "a/b/c/d"\n', "is not repository/type/tag"),
        (b'[[resource]]\npath = "a/b/[c]"\n', "is not repository/type/tag"),
        (b'[[resource]]\npath = "a/b/c"\ninit_data = ["abc"]\n', "not a digest in hex"),
        (b'[[resource]]\npath = "a/b/c"\ntee = "snp"\n', "Expected `array | null`"),
        (b"a = " + b"[" * 10000, "cannot read the policy"),
    ],
)
def test_a_policy_that_cannot_be_read(text: bytes, said: str) -> None:
    with pytest.raises(BrokerError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[evidence]\ninsecure_sample = true\n")
    file = PolicyFile(str(path))
    assert file.current().evidence.insecure_sample
    assert file.current() is file.current()
    path.write_text("nonsense")
    for _ in range(2):
        with pytest.raises(BrokerError):
            file.current()
    path.unlink()
    with pytest.raises(BrokerError, match="No such file"):
        file.current()
    path.write_text("")
    assert not file.current().evidence.insecure_sample


def test_a_change_that_leaves_size_and_time_as_they_were_is_seen(tmp_path: Path) -> None:
    """Two edits within one tick of the kernel's clock, or a file restored with its time."""
    path = tmp_path / "policy.toml"
    path.write_text(rule("a/b/c", f'init_data = ["{A}"]'))
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    file = PolicyFile(str(path))
    assert file.current().allows(parse_name("a/b/c"), "snp", [A])
    path.write_text(path.read_text().replace(A, "0" * len(A)))
    os.utime(path, ns=times)
    assert not file.current().allows(parse_name("a/b/c"), "snp", [A])
