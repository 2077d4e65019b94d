"""What is not allowed is denied."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from sealrun_broker.errors import BrokerError
from sealrun_broker.policy import Client, Policy, PolicyFile, parse
from sealrun_protocol.resource_uri import parse_name

A, B = "a" * 64, "b" * 96


CLIENT = Client("snp", {}, (), None, "affirming", ())


def objection(text: str, name: str = "default/key/app", **members: Any) -> str:
    return parse(text.encode()).objection(parse_name(name), CLIENT._replace(**members))


def allows(text: str, name: str = "default/key/app", tee: str = "snp", digests: str = "") -> bool:
    return not objection(text, name, tee=tee, init_data=tuple(digests.split()))


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
    assert not allows(text, tee="tpm")


def test_init_data() -> None:
    text = rule("*/*/*", f'init_data = ["{A}", "{B}"]')
    assert allows(text, digests=f"x {B}")
    assert not allows(text, digests="c" * 64)
    assert not allows(text)


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
        (b'[[resource]]\npath = "a/b/c"\nimages = ["busybox"]\n', "not the digest of an image"),
        (b'[[resource]]\npath = "a/b/c"\nclaims = { a = 1 }\n', "Expected `array`"),
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
    client = CLIENT._replace(init_data=[A])
    assert not file.current().objection(parse_name("a/b/c"), client)
    path.write_text(path.read_text().replace(A, "0" * len(A)))
    os.utime(path, ns=times)
    assert file.current().objection(parse_name("a/b/c"), client)


IMAGE, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ((IMAGE,), ""),
        ((IMAGE, OTHER), "it pulled another image"),
        ((OTHER,), "it pulled another image"),
        ((), "it pulled no image yet"),
        (None, "no measured event log says which image it pulled"),
    ],
)
def test_a_key_for_an_image(images: tuple[str, ...] | None, said: str) -> None:
    assert objection(rule("*/*/*", f'images = ["{IMAGE}"]'), images=images) == said
    assert objection(rule("*/*/*"), images=images) == ""


@pytest.mark.parametrize(
    ("claims", "allowed"),
    [
        ({"debug": False, "quote": {"body": {"xfam": "e7"}}}, True),
        ({"debug": 0, "quote": {"body": {"xfam": "e7"}}}, False),
        ({"debug": False, "quote": {"body": {}}}, False),
        ({"debug": False, "quote": "body"}, False),
        ({}, False),
    ],
)
def test_claims_by_dotted_name(claims: dict[str, Any], allowed: bool) -> None:
    text = rule("*/*/*", 'claims = { debug = [false], "quote.body.xfam" = ["e7", "e8"] }')
    assert (objection(text, claims=claims) == "") is allowed


@pytest.mark.parametrize("status", ["none", "warning", "contraindicated"])
def test_only_what_is_affirmed_counts_unless_it_is_said(status: str) -> None:
    members = {"status": status, "reasons": ("PCR 4 is unknown", "no key")}
    said = objection(rule("*/*/*"), **members)
    assert said == f"the appraisal is {status}; PCR 4 is unknown; no key"
    assert objection(rule("*/*/*", "insecure_unrecognised = true"), **members) == ""


def test_sample_evidence_counts_by_its_own_switch_alone() -> None:
    members = {"tee": "sample", "status": "contraindicated"}
    assert objection(rule("*/*/*", "insecure_unrecognised = true"), **members)
    assert objection("[evidence]\ninsecure_sample = true\n" + rule("*/*/*"), **members) == ""


def test_the_nearest_rule_says_why() -> None:
    text = rule("a/b/c", 'tee = ["tdx"]') + rule("a/b/*", f'init_data = ["{A}"]')
    assert objection(text, "a/b/c") == "it sent no init-data"
    assert objection(text, "a/b/c", init_data=["c"]) == "its init-data is another one"
    assert objection(text, "x/y/z") == "no rule is about it"
    assert (
        objection(rule("a/b/c", 'tee = ["tdx"]'), "a/b/c") == "evidence of kind snp is not enough"
    )


def test_another_policy_is_checked_before_it_is_put_in_place(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("")
    file = PolicyFile(str(path))
    with pytest.raises(BrokerError, match="unknown field"):
        file.replace(b"[evidnce]\n")
    assert path.read_text() == ""
    file.replace(b"[evidence]\ninsecure_sample = true\n")
    assert file.current().evidence.insecure_sample


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (rule("*/*/*", "tee = []"), "resource 1: tee is empty, so nobody gets it"),
        (rule("*/*/*", "init_data = []"), "resource 1: init_data is empty"),
        (rule("*/*/*", "images = []"), "resource 1: images is empty"),
        (rule("*/*/*", "claims = { debug = [] }"), "resource 1: the claim debug is empty"),
        (rule("*/*/*", 'tee = ["spn"]'), "'spn' is not one of sample, snp, tdx, tpm"),
        (rule("a/../c"), "'a/../c' is not repository/type/tag"),
        ("[evidence]\nsnp_report_versions = []", "snp_report_versions is empty"),
    ],
)
def test_what_never_lets_anybody_in_is_a_mistake(text: str, said: str) -> None:
    with pytest.raises(BrokerError, match=re.escape(said)):
        parse(text.encode())
