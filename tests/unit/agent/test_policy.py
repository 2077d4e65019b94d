"""Whose wishes count, and what the host is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.errors import PullError, VerifyError
from sealrun_agent.policy import Policy, one_line
from sealrun_protocol import limits
from sealrun_protocol.errors import ERRORS, ErrorCode, Phase
from sealrun_protocol.image_wishes import Image
from sealrun_protocol.init_data import parse

TENANT = parse(
    b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'
    b"\"sealrun.toml\" = '''[image]\ninsecure_registries = [\"mine.example\"]'''\n"
)


@pytest.mark.parametrize(
    ("policy", "registries"),
    [
        (Policy(), ("wished.example",)),
        (Policy(tee="snp"), ()),
        (Policy(TENANT), ("mine.example",)),
        (Policy(TENANT, "snp"), ("mine.example",)),
    ],
)
def test_the_operator_s_wish_counts_only_without_tenant_and_tee(
    policy: Policy, registries: tuple[str, ...]
) -> None:
    assert policy.insecure_registries(("wished.example",)) == registries


def test_words() -> None:
    error = PullError(ErrorCode.IMAGE_NOT_FOUND, "secret.example/x:\nnot there")
    assert Policy(TENANT).words(error) == "secret.example/x: not there"
    assert Policy(tee="tdx").words(error) == ERRORS[ErrorCode.IMAGE_NOT_FOUND].summary
    assert Policy().progress_words(Phase.PULL, "layer\t1") == "layer 1"
    assert Policy(tee="tdx").progress_words(Phase.PULL, "layer 1") == "pull"


def test_every_code_has_words_where_a_tee_is_active() -> None:
    for code in ErrorCode:
        words = Policy(tee="snp").words(VerifyError(code, "x"))
        assert words == one_line(words) != "x"


@given(st.text(max_size=3000))
def test_one_line_is_one_bounded_line(text: str) -> None:
    line = one_line(text)
    assert len(line.encode()) <= limits.ERROR_TEXT_BYTES
    assert line.isprintable()


@pytest.mark.parametrize("character", ["x", "ä", "€", "𝄞"])
def test_one_line_cuts_between_characters(character: str) -> None:
    line = one_line(character * 2000)
    assert line.endswith("…")
    assert set(line) == {character, "…"}
    assert one_line(character * 10) == character * 10


def test_with_a_tee_nothing_is_allowed_by_default() -> None:
    """Neither an image nor output; without one the host can read the VM's memory anyway."""
    for document in (Policy(tee="tpm"), Policy(TENANT, "snp")):
        assert document.allowed_images == ()
        assert document.tenant is not None
        assert not document.tenant.output
        assert not document.tenant.host.may_share_at("/data")
    for wish in (
        Image(image_security_policy="{}"),
        Image(image_security_policy_uri="kbs:///a/b/c"),
    ):  # then that decides, and nothing else
        assert Policy(TENANT._replace(image=wish), "snp").allowed_images is None
    assert Policy().allowed_images is None
    assert Policy().tenant is None
    assert Policy(TENANT).allowed_images is None
    without = Policy(TENANT).tenant
    assert without is not None
    assert without.output


@pytest.mark.parametrize("line", ["allow_output", "insecure_any_process"])
def test_what_the_tenant_leaves_to_the_host_with_a_tee(line: str) -> None:
    text = TENANT.text.replace(b"]'''", b"]\n[container]\n" + line.encode() + b" = true'''")
    tenant = Policy(parse(text), "snp").tenant
    assert tenant is not None
    assert tenant.output
