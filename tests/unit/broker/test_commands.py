"""Commands that are given nonsense: one line that names it, and nothing is stored."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sealrun_broker import bounds, cli

NONCE = "00" * 32
KID = "kbs:///a/b/c"
SEAL = ("seal", "--signer", "key-private.json", "--kid", KID)
ENVELOPE = (*SEAL, "envelope", "--key", "key32", "--key-id", KID)
VERIFY = ("verify", "evidence", "--nonce", NONCE, "--no-init-data")
RULE = '[[resource]]\npath = "a/b/c"\n'


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command beside a broker's directory `D`; its status, output and errors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "blank").write_text("\n \n")
    (tmp_path / "key32").write_bytes(bytes(32))
    (tmp_path / "evidence").write_text('{"tee": "sample", "evidence": {}}')
    os.truncate(os.open(tmp_path / "huge", os.O_CREAT | os.O_WRONLY), 1 << 40)

    def command(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(arguments)
        return status, *capsys.readouterr()

    assert command("init", "D")[0] == 0
    assert command("seal-key", "key")[0] == 0
    return command


Run = Callable[..., tuple[int, str, str]]

LONG = f"it is longer than {bounds.BODY_BYTES} bytes"
REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("add-resource", "D", "a/b/c", "empty"), "cannot store resource a/b/c: it is empty"),
    (("add-resource", "D", "a/b/c", "/dev/null"), "cannot store resource a/b/c: it is empty"),
    (("add-resource", "D", "a/b/c", "huge"), "cannot read huge: it is longer than 1048576 bytes"),
    (("add-resource", "D", "a/b/c", "/dev/zero"), "cannot read /dev/zero: it is longer than"),
    (("add-resource", "D", "a/b/c", "."), "cannot read .: Is a directory"),
    (("add-resource", "D", "a/b/../c", "key32"), "is not repository/type/tag"),
    (("policy", "D", "--set", "huge"), f"cannot read huge: {LONG}"),
    (("policy", "D", "--set", "empty"), "cannot use the policy: it is empty"),
    (("policy", "D", "--set", "blank"), "cannot use the policy: it is empty"),
    (("add-reference", "D", "--file", "huge"), "cannot read huge: it is longer than 1048576 bytes"),
    (("add-reference", "D", "--file", "none.json"), "cannot read none.json: it holds no value"),
    (("add-reference", "D", "--file", "blank.json"), "the value of a is empty"),
    (("add-reference", "D", "mr_td", ""), "the value of mr_td is empty"),
    (("add-reference", "D", "mr_td"), "there is no reference value mr_td"),
    ((*ENVELOPE, "empty"), "cannot seal: the content is empty"),
    ((*ENVELOPE, "huge"), "cannot read huge: it is longer than 1048576 bytes"),
    ((*SEAL, "--place", "", "vault", KID), "cannot seal: the place is empty"),
    (("init", "E", "--name", ""), "cannot make a certificate for '': it is no name"),
    (("init", "E", "--name", "a b"), "cannot make a certificate for 'a b': it is no name"),
    (("init", "E", "--name", "a..b"), "cannot make a certificate for 'a..b': it is no name"),
    (("init", "E", "--store-key", "/missing/key"), "cannot write /missing/key: No such file"),
    (("init", "E", "--store-key", "key32"), "cannot write key32: File exists"),
    ((*VERIFY, "--policy", "empty"), "cannot use empty: it is empty"),
    ((*VERIFY, "--policy", "huge"), f"cannot read huge: {LONG}"),
    ((*VERIFY, "--time", "-1"), "cannot use --time: it is not a time from 1970 to 9999"),
    ((*VERIFY, "--time", "9" * 20), "cannot use --time: it is not a time from 1970 to 9999"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED, ids=[" ".join(a) for a, _ in REFUSED])
def test_refused(run: Run, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "none.json").write_text("{}")
    (tmp_path / "blank.json").write_text('{"a": ["1", ""]}')
    policy = (tmp_path / "D/policy.toml").read_bytes()
    status, out, errors = run(*arguments)
    assert (status, out) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith("sealrun-broker: ")
    assert said in line
    assert (tmp_path / "D/policy.toml").read_bytes() == policy
    assert not (tmp_path / "D/reference-values.json").exists()
    assert list((tmp_path / "D/resources").iterdir()) == []
    assert not (tmp_path / "E").exists() or list((tmp_path / "E").iterdir()) == []


@pytest.mark.parametrize("size", [bounds.RESOURCE_BYTES + 1, bounds.RESOURCE_BYTES])
def test_the_standard_input_has_the_same_bound(
    run: Run, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes(size))))
    status, out, errors = run("add-resource", "D", "a/b/c", "-")
    assert (status, out == "") == ((1, True) if size > bounds.RESOURCE_BYTES else (0, False))
    assert ("the standard input: it is longer than" in errors) == (size > bounds.RESOURCE_BYTES)


def test_what_is_forgotten_is_said(run: Run) -> None:
    assert run("add-reference", "D", "a", "1", "2") == (0, "stored a\n", "")
    assert run("add-reference", "D", "a") == (0, "forgot a\n", "")


def test_what_is_unusual_is_taken(run: Run) -> None:
    assert run("init", "E", "--name", "*.example.com", "--name", "::2", "--name", "kbs_1")[0] == 0
