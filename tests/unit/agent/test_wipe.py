"""Keys that are not needed any more are zeros."""

import os

from sealrun_agent.wipe import wipe


def test_the_object_itself_is_overwritten() -> None:
    secrets = [os.urandom(size) for size in (2, 32, 5000)]
    others = [bytes(bytearray(secret)) for secret in secrets]
    before = list(others)
    wipe(secrets)
    assert secrets == [bytes(2), bytes(32), bytes(5000)]
    assert others == before, "copies are objects of their own"


def test_what_cpython_shares_stays_as_it_is() -> None:
    wipe((b"", b"x"))
    assert ord(b"x") == 0x78
