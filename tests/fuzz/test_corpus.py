"""Each target reads its corpus as the files' names say, and any change of it within bounds."""

import random
import time

import pytest
from fuzz.mutation import mutated
from fuzz.targets import TARGETS, corpus

pytestmark = pytest.mark.root

CHANGES = {"tar": 800}  # a costly one
MANY = 2000
SECONDS = 20  # for one input: the machine may be busy
FILES = [(target, name) for target in TARGETS for name in corpus(target)]


@pytest.mark.parametrize(("target", "name"), FILES, ids=["-".join(file) for file in FILES])
def test_a_file(target: str, name: str) -> None:
    verdict, _, rest = name.partition("-")
    assert verdict in ("ok", "no")
    assert rest
    assert TARGETS[target](corpus(target)[name]) is (verdict == "ok")


@pytest.mark.parametrize("target", TARGETS)
def test_changes(target: str) -> None:
    """The same ones each time: whoever finds more has a file for the corpus."""
    files, dice = corpus(target), random.Random(target)
    for _ in range(CHANGES.get(target, MANY)):
        data = mutated(files, dice)
        start = time.monotonic()
        try:
            TARGETS[target](data)
        except Exception as error:
            raise AssertionError(f"{target} fails for {data!r}") from error
        assert time.monotonic() - start < SECONDS, data


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_has_both_kinds(target: str) -> None:
    assert {name[:3] for name in corpus(target)} == {"ok-", "no-"}
