"""What names and links of a layer lead to while it is filled, and is replaced, and when lower layers come later."""

import os
from pathlib import Path

import pytest
from fixtures import layers
from fixtures.unpacking import chunked, fill, names
from sealrun_agent.image.layer import unpack

pytestmark = pytest.mark.root


def test_a_hard_link_to_a_symlink_is_one_to_the_link_itself(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    layer = fill(tmp_path / "l", [layers.symlink("s", str(secret)), layers.link("h", "s")])
    assert os.readlink(layer / "h") == str(secret)
    assert (layer / "h").lstat().st_ino == (layer / "s").lstat().st_ino
    assert secret.stat().st_nlink == 1


def test_a_name_that_leads_elsewhere_since_it_was_replaced(tmp_path: Path) -> None:
    """No descriptor of what was there before is used."""
    layer = fill(
        tmp_path / "l",
        [
            layers.file("d/e/x", b"1"),
            layers.symlink("d", "new"),
            layers.directory("new/e"),
            layers.file("d/e/y", b"2"),
        ],
    )
    assert names(layer) == {"d", "new", "new/e", "new/e/y"}


def test_a_link_that_waited_for_its_target_goes_with_its_directory(tmp_path: Path) -> None:
    link = layers.link("d/l", "in/no/layer")
    layer = fill(tmp_path / "l", [layers.directory("d"), link, layers.file("d", b"1")])
    assert names(layer) == {"d"}


def test_lower_layers_are_looked_into_when_they_are_complete(tmp_path: Path) -> None:
    below, layer = tmp_path / "below", tmp_path / "l"
    below.mkdir()
    layer.mkdir()

    def complete() -> None:
        (below / "f").write_bytes(b"1")

    tar = layers.tar([layers.link("l", "f")])
    unpack(chunked(tar), str(layer), [str(below)], "layer x", complete)
    assert (layer / "l").read_bytes() == b"1"
