"""What an image security policy decides without any signature."""

from typing import NoReturn

import pytest
from sealrun_agent.errors import VerifyError
from sealrun_agent.image.admission import Admission
from sealrun_agent.image.policy import ImagePolicy
from sealrun_agent.image.reference import parse
from sealrun_protocol.errors import ErrorCode

DIGEST = "sha256:" + "1" * 64


def never(*_: object) -> NoReturn:
    raise AssertionError("nothing is to be fetched")


def admit(policy: str) -> bool:
    image = parse("registry.example/app:1")
    return Admission(ImagePolicy(security_policy=policy), image, never, never).admit(DIGEST)


@pytest.mark.parametrize("policy", ["", '{"default": [{"type": "insecureAcceptAnything"}]}'])
def test_who_lets_everything_in_vouches_for_nothing(policy: str) -> None:
    """An encrypted image needs somebody who does, or its digest in the init-data."""
    assert admit(policy) is False


def test_reject() -> None:
    with pytest.raises(VerifyError, match="it says reject") as caught:
        admit('{"default": [{"type": "insecureAcceptAnything"}, {"type": "reject"}]}')
    assert caught.value.code is ErrorCode.IMAGE_NOT_SIGNED
