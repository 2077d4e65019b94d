"""One line for a person, in words that an engine takes for nothing else."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_runtime.errors import HostError, NotFound, Reported, cause, describe

# Podman 4.3.1, libpod/oci_util.go: what makes it say 127 and 126.
PODMAN_127 = re.compile(
    "executable file not found in|no such file or directory|open executable", re.I
)
PODMAN_126 = re.compile("permission denied|operation not permitted", re.I)


def test_phase_text_and_remedy() -> None:
    error = Reported("vmm-failed", "cannot start qemu", remedy="install it", phase="boot")
    assert describe(error) == "boot: cannot start qemu; install it"
    assert describe(NotFound("c1")) == 'container "c1" does not exist'


@pytest.mark.parametrize(
    "text",
    [
        'exec: "foo": executable file not found in $PATH: No such file or directory',
        "open executable: Operation not permitted",
        "fork/exec /x: permission denied",
    ],
)
@pytest.mark.parametrize("kind", ["program-not-found", "program-not-executable"])
def test_texts_about_the_program_pass_unchanged(kind: str, text: str) -> None:
    assert describe(Reported(kind, text)) == text


@given(st.text() | st.sampled_from(["No such file or directory", "Permission denied" * 3]))
def test_no_other_text_makes_podman_blame_the_program(text: str) -> None:
    for words in (text, f"qemu: {text}", f"Operation not permitted {text} permission denied"):
        said = describe(Reported("vmm-failed", words))
        assert not re.search("no such file or directory|executable file not found in", said, re.I)
        assert not PODMAN_126.search(said)


@given(st.text())
def test_a_guest_cannot_write_lines_or_escapes(text: str) -> None:
    said = describe(Reported("key-denied", text, remedy="x"))
    assert said.isprintable()


@pytest.mark.parametrize("number", range(1, 134))
def test_causes_never_mislead(number: int) -> None:
    text = cause(OSError(number, __import__("os").strerror(number)))
    assert text
    assert not PODMAN_127.search(text)
    assert not PODMAN_126.search(text)
    assert describe(HostError(f"cannot read x: {text}")).endswith(text)


@pytest.mark.parametrize(
    ("kind", "words", "status"),
    [
        ("program-not-found", ": no such file or directory", 127),
        ("program-not-executable", ": permission denied", 126),
        ("key-denied", "", 0),
    ],
)
def test_where_the_guest_tells_only_a_kind_engines_still_find_their_words(
    kind: str, words: str, status: int
) -> None:
    error = Reported(kind, "a fixed sentence")
    assert describe(error) == f"a fixed sentence{words}"
    assert (error.program_status, error.status) == (status, 1)
