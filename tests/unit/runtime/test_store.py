"""The state root: ids, atomic files, complete removal, and state documents patched as bytes."""

import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_runtime import store
from sealrun_runtime.errors import InvalidRequest, NotFound


@pytest.mark.parametrize("container", ["a", "A-b_c.d+e", "0" * 64, "..a", "a" * 1024])
def test_ids_that_runc_takes(container: str) -> None:
    assert store.check_id(container) == container


@pytest.mark.parametrize(
    "container", ["", ".", "..", "a/b", "../x", "a b", "ä", "a\0b", "a\n", "a" * 1025, "$(x)"]
)
def test_ids_that_no_directory_shall_have(container: str) -> None:
    with pytest.raises(InvalidRequest, match="invalid container id"):
        store.check_id(container)


def test_a_directory_is_private_and_taken_once(tmp_path: Path) -> None:
    root = str(tmp_path / "a/b")
    directory = store.make_container(root, "c1")
    assert stat.S_IMODE(os.stat(directory.path).st_mode) == 0o700
    with pytest.raises(InvalidRequest, match="container with id exists: c1"):
        store.make_container(root, "c1")
    assert store.containers(root) == ["c1"]
    directory.remove()
    assert store.containers(root) == []
    directory.close()


def test_several_that_come_first_make_the_root_together(tmp_path: Path) -> None:
    for turn in range(50):
        root = str(tmp_path / f"{turn}/with/parents")
        with ThreadPoolExecutor(8) as callers:
            made = list(callers.map(partial(store.make_container, root), "abcdefgh"))
        assert store.containers(root) == list("abcdefgh")
        for one in made:
            one.close()


def test_an_unknown_container(tmp_path: Path) -> None:
    for name in ("c1", "a" * store.ID_LENGTH):
        with pytest.raises(NotFound, match=f'container "{name}" does not exist'):
            store.open_container(str(tmp_path), name)
    assert store.containers(str(tmp_path / "nothing")) == []


def test_a_link_is_no_container(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "c1").symlink_to("elsewhere")
    with pytest.raises(Exception, match="cannot open"):
        store.open_container(str(tmp_path), "c1")


def test_files_are_replaced_and_read(tmp_path: Path) -> None:
    directory = store.make_container(str(tmp_path), "c1")
    assert directory.read("state.json") == b""
    directory.write("state.json", b"1" * 3_000_000)
    directory.write("state.json", b"2")
    assert directory.read("state.json") == b"2"
    directory.append("processes", "shim 1 2")
    directory.append("processes", "vmm 3 4")
    assert directory.read("processes") == b"shim 1 2\nvmm 3 4\n"
    assert sorted(os.listdir(directory.path)) == ["processes", "state.json"]
    directory.close()


def test_removal_takes_everything_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    directory = store.make_container(str(tmp_path / "root"), "c1")
    below = Path(directory.path, "deep/deeper")
    below.mkdir(parents=True)
    (below / "file").write_text("x")
    Path(directory.path, "link").symlink_to(outside)
    os.mkfifo(f"{directory.path}/fifo")
    for _ in range(2):  # again does no harm
        assert not directory.clear()
        directory.remove()
    assert (outside / "kept").exists()
    assert os.listdir(tmp_path / "root") == []
    directory.close()


def test_of_several_removals_one_has_the_hooks(tmp_path: Path) -> None:
    made = store.make_container(str(tmp_path), "c1")
    made.write(store.POSTSTOP, b"[]")
    made.write(store.STATE, b"{}")
    assert [made.clear() for _ in range(3)] == [True, False, False]
    made.remove()
    assert os.listdir(tmp_path) == []
    made.close()


def test_several_removals_at_once_do_no_harm(tmp_path: Path) -> None:
    """As of a pod whose members end together: what another has removed already is no error."""
    directory = store.make_container(str(tmp_path), "c1")
    below = tmp_path / "c1/tree"
    for number in range(300):
        (below / f"{number}/share").mkdir(parents=True)
    gate = threading.Barrier(4)

    def remove(_: int) -> None:
        gate.wait()
        directory.clear()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(remove, range(4))) == [None] * 4
    assert list((tmp_path / "c1").iterdir()) == []


def test_removal_spares_a_newer_directory_of_the_same_name(tmp_path: Path) -> None:
    first = store.make_container(str(tmp_path), "c1")
    os.rename(first.path, tmp_path / "moved")
    second = store.make_container(str(tmp_path), "c1")
    second.write("state.json", b"{}")
    first.clear()
    first.remove()
    assert second.read("state.json") == b"{}"
    assert os.path.isdir(second.path)
    first.close()
    second.close()


@st.composite
def states(draw: st.DrawFn) -> dict[str, object]:
    """Documents with their members in the order that store.py demands."""
    ids = st.text(alphabet="abcXYZ019_+-.", min_size=1) | st.sampled_from(["status", "pid", "id"])
    return {
        "ociVersion": "1.0.2",
        "id": draw(ids),
        "status": draw(st.sampled_from(["creating", "created", "running", "stopped"])),
        "pid": draw(st.integers(0, 1 << 22)),
        "bundle": draw(st.text() | st.sampled_from(["pid", '"pid": 3'])),
        "annotations": draw(st.dictionaries(st.text(), st.text())),
    }


@given(states(), st.sampled_from([None, 2]))
def test_a_state_document_is_patched_as_json_would(
    state: dict[str, object], indent: int | None
) -> None:
    document = json.dumps(state, indent=indent).encode()
    assert store.status_of(document) == state["status"]
    assert json.loads(store.as_stopped(document)) == {**state, "status": "stopped", "pid": 0}


def test_no_document_has_no_status() -> None:
    assert store.status_of(b"") == ""
