"""Resources are files that only the broker's owner reads, replaced at one stroke."""

import os
import stat
from pathlib import Path

import pytest
from sealrun_broker import bounds, directory
from sealrun_broker.errors import BrokerError
from sealrun_broker.store import Store, read_key
from sealrun_protocol.resource_uri import parse_name

KEY = bytes(range(32))
NAME = parse_name("default/key/app")


def test_stored_replaced_deleted(tmp_path: Path) -> None:
    store = Store(str(tmp_path), KEY)
    assert store.get(NAME) is None
    store.put(NAME, b"1")
    store.put(NAME, b"\0" * bounds.RESOURCE_BYTES)
    assert store.get(NAME) == b"\0" * bounds.RESOURCE_BYTES
    assert stat.S_IMODE((tmp_path / "default/key/app").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "default").stat().st_mode) == 0o700
    assert [entry.name for entry in (tmp_path / "default/key").iterdir()] == ["app"]
    assert store.delete(NAME)
    assert not store.delete(NAME)
    assert store.get(NAME) is None
    assert list(tmp_path.iterdir()) == []


def test_deleting_one_leaves_the_others(tmp_path: Path) -> None:
    store, other = Store(str(tmp_path), KEY), parse_name("default/key/other")
    store.put(NAME, b"1")
    store.put(other, b"2")
    assert store.delete(NAME)
    assert store.get(other) == b"2"


def test_what_is_too_long_is_neither_stored_nor_cut(tmp_path: Path) -> None:
    store = Store(str(tmp_path), KEY)
    with pytest.raises(BrokerError, match="longer than"):
        store.put(NAME, bytes(bounds.RESOURCE_BYTES + 1))
    assert store.get(NAME) is None
    store.put(NAME, b"1")
    (tmp_path / "default/key/app").write_bytes(bytes(2 * bounds.RESOURCE_BYTES))
    with pytest.raises(BrokerError, match="longer than"):
        store.get(NAME)


def test_a_folder_is_no_resource(tmp_path: Path) -> None:
    store = Store(str(tmp_path), KEY)
    (tmp_path / "default/key/app").mkdir(parents=True)
    assert store.get(NAME) is None
    with pytest.raises(BrokerError, match="cannot store resource default/key/app"):
        store.put(NAME, b"1")
    (tmp_path / "default/key").joinpath("file").write_bytes(b"")
    with pytest.raises(BrokerError, match="cannot delete"):
        store.delete(NAME)


def test_the_longest_name_is_stored_like_any_other(tmp_path: Path) -> None:
    store, longest = Store(str(tmp_path), KEY), parse_name("/".join("a" * 255 for _ in range(3)))
    store.put(longest, b"1")
    assert store.get(longest) == b"1"


def test_what_lies_on_the_disk_is_encrypted_and_bound_to_its_name(tmp_path: Path) -> None:
    store = Store(str(tmp_path), KEY)
    store.put(NAME, b"the key of the image")
    file, other = tmp_path / "default/key/app", tmp_path / "default/key/other"
    stored = file.read_bytes()
    assert b"the key" not in stored
    store.put(NAME, b"the key of the image")
    assert file.read_bytes() != stored, "a nonce is used once"
    other.write_bytes(stored)
    for name, key in ((parse_name("default/key/other"), KEY), (NAME, bytes(32))):
        with pytest.raises(BrokerError, match="was changed, or stored with another key"):
            Store(str(tmp_path), key).get(name)
    for position in range(len(stored)):
        file.write_bytes(
            stored[:position] + bytes((stored[position] ^ 1,)) + stored[position + 1 :]
        )
        with pytest.raises(BrokerError, match="cannot read resource default/key/app"):
            store.get(NAME)
    for cut in (0, 3, 4, 16, len(stored) - 1):
        file.write_bytes(stored[:cut])
        with pytest.raises(BrokerError, match="cannot read resource default/key/app"):
            store.get(NAME)


def test_a_key_is_32_bytes(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    assert read_key(str(tmp_path / "key")) == KEY
    (tmp_path / "key").write_bytes(KEY + b"\n")
    with pytest.raises(BrokerError, match="not a key of 32 bytes"):
        read_key(str(tmp_path / "key"))


def test_what_a_killed_process_of_the_same_id_left_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the broker is process 1, before its crash and after."""
    path = tmp_path / "app"

    def killed(_source: str, _target: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", killed)
        directory.write(str(path), b"half")
    assert not path.exists()
    directory.write(str(path), b"whole")
    assert path.read_bytes() == b"whole"
