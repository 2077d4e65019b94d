"""Names, docstrings and words: what a reader may rely on everywhere in the repository."""

import ast
import re

import pytest
from house import source_tree

DRAWERS = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}

# The boundaries where any exception at all becomes an answer, or PID 1's last words.
CATCH_ALL = {
    "guest-agent/sealrun_agent/image/task.py",  # raises it in the thread that waits
    "guest-agent/sealrun_agent/main.py",
    "runtime/sealrun_runtime/cli.py",
    "runtime/sealrun_runtime/shim/server.py",
    "guest-agent/sealrun_agent/service.py",
}

# Hosts that a file may name in a URL: loopback, names reserved for documentation and tests, and
# the documents that define what we implement. No registry of packages is among them: where
# packages come from is the machine's own setting.
REAL_HOST = re.compile(r"[a-z0-9]\.[a-z]{2,}$")
URL_HOSTS = re.compile(
    r"^(localhost|127\.\d+\.\d+\.\d+|\[::1\]|.*\.(invalid|test|example|internal|local)"
    r"|(.*\.)?example\.(com|org|net)|www\.apache\.org|github\.com|opencontainers\.org"
    r"|www\.rfc-editor\.org|datatracker\.ietf\.org)$"
)

TEXT_SUFFIXES = {
    "", ".py", ".sh", ".md", ".toml", ".txt", ".in", ".json", ".conf", ".yml", ".yaml", ".cfg",
}  # fmt: skip


def _texts() -> list[tuple[str, str]]:
    texts = []
    for path in source_tree.files():
        if path.suffix not in TEXT_SUFFIXES:
            continue
        content = path.read_bytes()
        if b"\0" not in content[:4096]:
            texts.append((source_tree.name(path), content.decode("utf-8", "replace")))
    return texts


def test_no_module_is_a_drawer() -> None:
    wrong = [
        source_tree.name(path)
        for path in source_tree.python_files()
        if DRAWERS & set(path.stem.lower().split("_"))
    ]
    assert not wrong, f"name a module by its one job: {wrong}"


def test_every_module_says_what_it_is() -> None:
    wrong = [
        source_tree.name(path)
        for path in source_tree.python_files()
        if not ast.get_docstring(source_tree.parse(path))
    ]
    assert not wrong, f"without a docstring: {wrong}"


def _public_without_docstring(body: list[ast.stmt], prefix: str) -> list[str]:
    wrong = []
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            wrong.append(f"{prefix}:{node.lineno} {node.name}")
        if isinstance(node, ast.ClassDef):
            wrong += _public_without_docstring(node.body, prefix)
    return wrong


def test_public_names_of_the_product_have_docstrings() -> None:
    wrong = [
        entry
        for path in source_tree.product_modules()
        for entry in _public_without_docstring(source_tree.parse(path).body, source_tree.name(path))
    ]
    assert not wrong, "\n".join(wrong)


def _only_cleans_up(handler: ast.ExceptHandler) -> bool:
    """Whether it ends by raising what it caught."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_any_exception_is_caught_only_at_the_boundaries() -> None:
    wrong = [
        f"{source_tree.name(path)}:{node.lineno}"
        for path in source_tree.product_modules()
        if source_tree.name(path) not in CATCH_ALL
        for node in ast.walk(source_tree.parse(path))
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})
        )
        and not _only_cleans_up(node)
    ]
    assert not wrong, f"translate what you expect, let the boundary see the rest: {wrong}"


def test_nothing_is_left_for_later() -> None:
    marker = re.compile(
        r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"]) + r")\b"
    )
    wrong = [
        f"{name}:{number}"
        for name, text in _texts()
        for number, line in enumerate(text.splitlines(), 1)
        if marker.search(line)
    ]
    assert not wrong, f"do it or write an issue: {wrong}"


def test_no_path_of_a_workplace_is_named() -> None:
    # Put together here so that this file does not name them either.
    places = ["/wo" + "rk/", "/home/" + "user", "/root/" + "."]
    wrong = [
        f"{name}:{number}"
        for name, text in _texts()
        for number, line in enumerate(text.splitlines(), 1)
        if any(place in line for place in places)
    ]
    assert not wrong, f"a path of one machine means nothing on another: {wrong}"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_urls_name_no_host_but_those_listed(scheme: str) -> None:
    url = re.compile(rf"\b{scheme}://([A-Za-z0-9][A-Za-z0-9.-]*|\[::1\])")
    wrong = [
        f"{name}: {host}"
        for name, text in _texts()
        for host in url.findall(text)
        if REAL_HOST.search(host.lower().rstrip(".")) and not URL_HOSTS.match(host.lower())
    ]
    assert not wrong, "\n".join(wrong)


def test_requirements_are_pinned_and_hashed_and_name_no_index() -> None:
    files = sorted((source_tree.ROOT / "config/requirements").glob("*.txt"))
    assert files
    for path in files:
        text = path.read_text()
        assert not re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links)", text, re.M), path
        entries = re.sub(r"\\\n", " ", text)
        for line in entries.splitlines():
            if line.strip() and not line.startswith("#"):
                assert re.match(r"^[a-zA-Z0-9_.\[\]-]+==\S+\s+--hash=sha256:[0-9a-f]{64}", line), (
                    f"{source_tree.name(path)}: {line[:60]}"
                )
