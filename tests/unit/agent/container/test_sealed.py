"""Environment values and files that are sealed are opened, and everything else stays as it is."""

from typing import Any

import pytest
from fixtures.agent import config
from sealrun_agent.container import sealed, spec
from sealrun_agent.errors import AttestError, StartError
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode

PLACES: list[str] = []
VALUES = {b"sealed.a.b.c": b"opened", b"sealed.nul": b"a\0b", b"sealed.bytes": b"\xff"}


def unseal(text: bytes, place: str) -> bytes:
    PLACES.append(place)
    if text not in VALUES:
        raise AttestError(ErrorCode.SEAL_INVALID, "no")
    return VALUES[text]


def accepted(*env: str, files: dict[int, bytes] | None = None) -> spec.Accepted:
    mounts = [
        {"destination": f"/run/secrets/{index}", "type": "bind", "source": "x"}
        for index in range(len(files or {}))
    ]
    first = 2  # of config's own mounts
    request = messages.CreateContainer(
        id=1,
        container="c1",
        config=config("sh", env=list(env), mounts=mounts),
        image="a",
        files={
            first + index: messages.File(content=content, mode=0o400, uid=7)
            for index, content in (files or {}).items()
        },
    )
    return spec.accept(request)


def environment(*env: str) -> tuple[str, ...]:
    return tuple(sealed.opened(accepted(*env), unseal).spec.process.env or ())


def test_values_are_opened_in_place() -> None:
    assert environment("A=1", "B=sealed.a.b.c", "C=x sealed.a.b.c", "sealed.a.b.c", "D=") == (
        "A=1",
        "B=opened",
        "C=x sealed.a.b.c",
        "sealed.a.b.c",
        "D=",
    )
    assert PLACES[-1:] == ["B"]


def test_a_value_is_remembered_for_its_place() -> None:
    asked = len(PLACES)
    remembered = sealed.remembering(unseal)
    for place in ("A", "B", "A"):
        assert remembered(b"sealed.a.b.c", place) == b"opened"
    assert PLACES[asked:] == ["A", "B"]


def test_without_a_seal_nothing_is_asked() -> None:
    def nobody(_text: bytes, _place: str) -> bytes:
        raise AssertionError("nothing is sealed")

    given = accepted("A=1", files={0: b"plain"})
    assert sealed.opened(given, nobody) == given


def test_files_are_opened_with_mode_and_owner_as_they_are() -> None:
    given = accepted(files={0: b"sealed.a.b.c", 1: b"plain sealed.a.b.c"})
    opened = sealed.opened(given, unseal)
    assert [file.content for file in opened.files.values()] == [b"opened", b"plain sealed.a.b.c"]
    assert PLACES[-1:] == ["/run/secrets/0"]
    assert {(file.mode, file.uid) for file in opened.files.values()} == {(0o400, 7)}


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        ("sealed.wrong", AttestError, "no"),
        ("sealed.nul", StartError, "its secret has a NUL in it"),
        ("sealed.bytes", StartError, "its secret is not text"),
    ],
)
def test_what_cannot_be_opened(value: str, error: type[Any], said: str) -> None:
    with pytest.raises(error, match=said):
        environment("A=1", f"B={value}")


def test_what_is_executed_later() -> None:
    process = accepted("A=sealed.a.b.c").spec.process
    assert sealed.opened_process(process, unseal).env == ("A=opened",)


def test_what_a_container_was_given_it_has() -> None:
    """A broker that gives no more refuses what comes later, and takes nothing back."""
    asked = []

    def once(text: bytes, place: str) -> bytes:
        asked.append(text)
        if asked.count(text) > 1:
            raise AttestError(ErrorCode.KEY_DENIED, "no more")
        return unseal(text, place)

    remembered = sealed.remembering(once)
    assert [remembered(b"sealed.a.b.c", "A") for _ in range(3)] == [b"opened"] * 3
    for _ in range(2):
        with pytest.raises(AttestError):
            remembered(b"sealed.unknown", "A")
    assert asked == [b"sealed.a.b.c", b"sealed.unknown", b"sealed.unknown"]


def test_what_a_container_remembers_is_bounded() -> None:
    asked = []

    def count(text: bytes, _place: str) -> bytes:
        asked.append(text)
        return text

    remembered = sealed.remembering(count)
    for _ in range(2):
        for index in range(100):
            assert remembered(b"%d" % index, "A") == b"%d" % index
    assert 100 < len(asked) < 200
