"""The checkout as the house tests see it: its files, its packages, its syntax trees.

The tree is walked rather than asked of git: an unpacked archive has no git, and under sudo git may
refuse a checkout that belongs to somebody else.
"""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = {
    "sealrun_protocol": ROOT / "guest-agent/sealrun_protocol",
    "sealrun_agent": ROOT / "guest-agent/sealrun_agent",
    "sealrun_vmm": ROOT / "vmm/sealrun_vmm",
    "sealrun_runtime": ROOT / "runtime/sealrun_runtime",
    "sealrun_broker": ROOT / "key-broker/sealrun_broker",
}

_NOT_OURS = {"build", "__pycache__", "node_modules"}


def files() -> Iterator[Path]:
    """Every file of the repository, without build output and caches, in a stable order."""
    for directory, names, entries in os.walk(ROOT):
        names[:] = sorted(
            name
            for name in names
            if name not in _NOT_OURS and (not name.startswith(".") or name == ".ci")
        )
        for entry in sorted(entries):
            path = Path(directory, entry)
            # In a second working tree of one repository .git is a file.
            if not path.is_symlink() and path.suffix != ".pyc" and entry != ".git":
                yield path


def first_line(path: Path) -> bytes:
    """The first line of `path`, as bytes: enough to see a `#!`."""
    with path.open("rb") as stream:
        return stream.readline(200)


def python_files() -> list[Path]:
    """Modules, and programs whose `#!` names python."""
    return [
        path
        for path in files()
        if path.suffix == ".py"
        or (
            path.suffix == "" and (line := first_line(path)).startswith(b"#!") and b"python" in line
        )
    ]


def shell_files() -> list[Path]:
    """Shell scripts, by name or by `#!`."""
    return [
        path
        for path in files()
        if path.suffix in {".sh", ".bash"}
        or (
            path.suffix == ""
            and (line := first_line(path)).startswith(b"#!")
            and line.split()[-1].rsplit(b"/", 1)[-1] in {b"sh", b"bash", b"dash"}
        )
    ]


def product_modules() -> list[Path]:
    """The modules of our packages: what is installed, as opposed to tests, benchmarks and tools."""
    return [path for root in PACKAGES.values() for path in sorted(root.rglob("*.py"))]


def parse(path: Path) -> ast.Module:
    """The syntax tree of `path`."""
    return ast.parse(path.read_bytes(), filename=str(path))


def name(path: Path) -> str:
    """`path` as a reader of a failure wants it: relative to the checkout."""
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    """The dotted name of a product module."""
    root = next(root for root in PACKAGES.values() if path.is_relative_to(root))
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that `path` imports, wherever in it, with the line."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
