"""Sessions end in time, and there are never too many."""

import base64

from sealrun_broker import bounds
from sealrun_broker.sessions import Sessions


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_session_is_found_until_it_is_over() -> None:
    clock = Clock()
    sessions = Sessions(300, clock)
    session = sessions.open("sample")
    assert len(session.nonce) == 44
    assert len(base64.b64decode(session.nonce)) == 32
    assert len(session.id) == 32
    clock.now = 299.9
    assert sessions.get(session.id) is session
    clock.now = 300
    assert sessions.get(session.id) is None


def test_looking_at_a_session_does_not_prolong_it() -> None:
    clock = Clock()
    sessions = Sessions(10, clock)
    session = sessions.open("sample")
    for clock.now in range(10):
        assert sessions.get(session.id) is session
    clock.now = 10
    assert sessions.get(session.id) is None


def test_an_ended_session_is_gone() -> None:
    sessions = Sessions()
    session, other = sessions.open("a"), sessions.open("b")
    sessions.end(session)
    sessions.end(session)
    assert sessions.get(session.id) is None
    assert sessions.get(other.id) is other


def test_no_two_are_alike_and_the_oldest_makes_room() -> None:
    sessions = Sessions()
    opened = [sessions.open("x") for _ in range(bounds.SESSIONS + 2)]
    assert len({session.nonce for session in opened}) == len(opened)
    assert [sessions.get(session.id) is None for session in opened[:3]] == [True, True, False]
    assert sessions.get("") is None
