"""The OCI state document."""

import json
from pathlib import Path

from sealrun_runtime import store
from sealrun_runtime.shim import state
from sealrun_runtime.shim.state import State, Status

DOCUMENT = State(
    oci_version="1.0.2",
    id="c1",
    status=Status.RUNNING,
    pid=42,
    bundle='/b "quoted"',
    annotations={"b": "2", "a": "1"},
)


def test_members_stand_in_the_order_that_the_hot_verbs_rely_on() -> None:
    document = json.loads(state.encode(DOCUMENT))
    assert list(document) == ["ociVersion", "id", "status", "pid", "bundle", "annotations"]
    assert document["status"] == "running"


def test_the_store_can_patch_it(tmp_path: Path) -> None:
    directory = store.make_container(str(tmp_path), "c1")
    state.write(directory, DOCUMENT)
    content = directory.read(store.STATE)
    assert store.status_of(content) == "running"
    patched = json.loads(store.as_stopped(content))
    assert (patched["status"], patched["pid"]) == ("stopped", 0)
    assert patched["bundle"] == '/b "quoted"'
    directory.close()


def test_it_is_one_line() -> None:
    assert state.encode(DOCUMENT).count(b"\n") == 1
