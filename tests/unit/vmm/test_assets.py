"""The look-up of the installed guest image, and what it says where there is none."""

import json
import os
from pathlib import Path

import pytest
from sealrun_vmm import assets
from sealrun_vmm.errors import HostUnfit


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "vmlinux").write_bytes(b"kernel")
    (tmp_path / "vmlinuz").write_bytes(b"bzImage!")
    (tmp_path / "initrd").write_bytes(b"initrd!")
    manifest = {
        "kernel": {"file": "vmlinux", "bytes": 6, "version": "6.1.1-1"},
        "bzimage": {"file": "vmlinuz", "bytes": 8},
        "initrd": {"file": "initrd", "bytes": 7},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_it_is_found(image: Path) -> None:
    found = assets.locate(str(image))
    assert found.kernel == str(image / "vmlinux")
    assert found.bzimage == str(image / "vmlinuz")
    assert found.initrd == str(image / "initrd")
    assert found.kernel_version == "6.1.1-1"


def test_a_relative_directory_gives_absolute_paths(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image.parent)
    assert assets.locate(image.name).kernel == str(image / "vmlinux")


def test_no_image(tmp_path: Path) -> None:
    with pytest.raises(HostUnfit, match=r"^no guest image is installed in ") as caught:
        assets.locate(str(tmp_path / "nowhere"))
    assert "install.sh" in caught.value.remedy


def test_a_part_is_missing(image: Path) -> None:
    (image / "initrd").unlink()
    with pytest.raises(HostUnfit, match=r"is incomplete: it lacks .*initrd$"):
        assets.locate(str(image))


def test_a_part_was_cut(image: Path) -> None:
    (image / "vmlinux").write_bytes(b"ker")
    with pytest.raises(HostUnfit, match="is damaged"):
        assets.locate(str(image))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kernel": 1}', '{"kernel": {"file": "x"}}', "\0"]
)
def test_a_damaged_manifest(image: Path, text: str) -> None:
    (image / "manifest.json").write_text(text)
    with pytest.raises(HostUnfit, match="guest image"):
        assets.locate(str(image))


def test_a_manifest_cannot_name_a_file_elsewhere(image: Path) -> None:
    text = (image / "manifest.json").read_text().replace('"initrd"}', '"/etc/../x/initrd"}')
    (image / "manifest.json").write_text(text)
    assert assets.locate(str(image)).initrd == str(image / "initrd")


def test_a_manifest_that_is_no_file(image: Path) -> None:
    """Nobody waits for whoever would write a pipe."""
    (image / "manifest.json").unlink()
    os.mkfifo(image / "manifest.json")
    with pytest.raises(HostUnfit, match=r"its manifest\.json is damaged"):
        assets.locate(str(image))
