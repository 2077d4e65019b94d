"""Allowed images: what a pattern lets through, and what it must not."""

import pytest
from sealrun_agent.errors import VerifyError
from sealrun_agent.image.policy import ImagePolicy, check_digests, check_pinned, check_reference
from sealrun_agent.image.reference import parse
from sealrun_protocol.errors import ErrorCode

ONE = "sha256:" + "1" * 64
TWO = "sha256:" + "2" * 64


def allows(pattern: str, reference: str, *digests: str) -> bool:
    """Whether both checks pass, as in a pull."""
    policy = ImagePolicy(allowed=(pattern,))
    try:
        check_reference(policy, parse(reference))
        check_digests(policy, parse(reference), digests or (ONE,))
    except VerifyError as error:
        assert error.code is ErrorCode.IMAGE_NOT_ALLOWED
        return False
    return True


@pytest.mark.parametrize(
    ("pattern", "reference"),
    [
        ("r.example/a", "r.example/a:1"),
        ("r.example/a", f"r.example/a@{ONE}"),
        ("r.example/a:1", "r.example/a:1"),
        (f"r.example/a@{ONE}", "r.example/a:1"),
        (f"r.example/a@{ONE}", f"r.example/a@{ONE}"),
        (f"r.example/a:1@{ONE}", f"r.example/a:1@{ONE}"),  # as people copy references
        (f"r.example:5000/a:1@{ONE}", "r.example:5000/a:2"),
        ("r.example/ns/*", "r.example/ns/a:1"),
        ("r.example/ns/*", "r.example/ns/a/b:1"),
        ("r.example:5000/*", "r.example:5000/a"),
    ],
)
def test_allows(pattern: str, reference: str) -> None:
    assert allows(pattern, reference)


@pytest.mark.parametrize(
    ("pattern", "reference"),
    [
        ("r.example/a", "r.example/ab"),
        ("r.example/a", "r.example/a/b"),
        ("r.example/a", "s.example/a"),
        ("r.example/a", "r.example:5000/a"),
        ("r.example/a:1", "r.example/a:2"),
        ("r.example/a:1", f"r.example/a:1@{ONE}"),  # nobody resolved the tag
        ("r.example/a:1", f"r.example/a@{ONE}"),
        (f"r.example/a@{TWO}", "r.example/a:1"),
        (f"r.example/b@{ONE}", "r.example/a:1"),
        (f"r.example/a:1@{TWO}", "r.example/a:1"),
        (f"r.example/b:1@{ONE}", "r.example/a:1"),
        (f"r.example:5000@{ONE}", "r.example/a:1"),
        (f"r.example/*@{ONE}", "r.example/a:1"),
        ("r.example/ns/*", "r.example/nsx/a"),
        ("r.example/ns/*", "r.example/ns"),
        ("*", "r.example/a"),
        ("", "r.example/a"),
        ("r.example/a*", "r.example/ab"),
    ],
)
def test_denies(pattern: str, reference: str) -> None:
    assert not allows(pattern, reference)


def test_a_pin_may_name_the_index_or_the_manifest() -> None:
    assert allows(f"r.example/a@{ONE}", "r.example/a:1", ONE, TWO)
    assert allows(f"r.example/a@{TWO}", "r.example/a:1", ONE, TWO)


def test_nothing_named_is_nothing_allowed_and_none_is_everything() -> None:
    with pytest.raises(VerifyError):
        check_reference(ImagePolicy(allowed=()), parse("r.example/a"))
    with pytest.raises(VerifyError):
        check_digests(ImagePolicy(allowed=()), parse("r.example/a"), (ONE,))
    check_reference(ImagePolicy(allowed=None), parse("r.example/a"))
    check_digests(ImagePolicy(allowed=None), parse("r.example/a"), (ONE,))


def test_a_pin_alone_lets_the_reference_be_asked_for() -> None:
    check_reference(ImagePolicy(allowed=(f"r.example/a@{ONE}",)), parse("r.example/a:1"))


def test_keys_are_for_what_is_named_by_digest() -> None:
    reference = parse("r.example/a:1")
    pinned = ImagePolicy(allowed=("r.example/b", f"r.example/a@{TWO}"))
    check_pinned(pinned, reference, (ONE, TWO))
    check_pinned(ImagePolicy(insecure_unpinned_keys=True), reference, (ONE,))
    for allowed in (None, (), ("r.example/a",), ("r.example/a:1",), ("r.example/*",)):
        with pytest.raises(VerifyError, match=ONE):
            check_pinned(ImagePolicy(allowed=allowed), reference, (ONE,))
    with pytest.raises(VerifyError):
        check_pinned(ImagePolicy(allowed=(f"r.example/b@{ONE}",)), reference, (ONE,))
