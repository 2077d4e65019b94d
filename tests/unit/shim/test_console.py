"""The one line of a guest's console that is worth repeating."""

from pathlib import Path

import pytest
from sealrun_runtime.shim import console


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", ""),
        (b"\r\n\r\n", ""),
        (b"one\r\ntwo\r\n", "two"),
        (b"agent: cannot mount /proc\n[    2.1] reboot: Power down\n", "agent: cannot mount /proc"),
        (
            (
                b"[    1.0] Kernel panic - not syncing: no init\n"
                b"[    1.2] ---[ end Kernel panic - not syncing: no init ]---\n"
            ),
            "[    1.0] Kernel panic - not syncing: no init",
        ),
        (b"\x1b[2J\x1b[31mred\x1b[0m\x07\n", "red"),
        (b"\xff\xfe broken\n", "�� broken"),
        (b"cut off in mid", "cut off in mid"),
    ],
)
def test_last_words(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(content)
    assert console.last_words(str(path)) == line


def test_last_words_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"x" * 100_000)
    assert len(console.last_words(str(path))) == console.LINE_CHARACTERS


def test_no_console(tmp_path: Path) -> None:
    assert console.last_words(str(tmp_path / "none")) == ""
