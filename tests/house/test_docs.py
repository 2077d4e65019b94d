"""Documents name only what exists, and decisions keep their numbers."""

import re
from itertools import pairwise

from house import source_tree

_TEST = re.compile(r"`((?:tests/[\w/.-]+|test_\w+)(?:\.py)?)`")
_FUNCTION = re.compile(r"^(?:async )?def (test_\w+)", re.M)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]+)(?:#[^)]*)?\)")


def test_relative_links_lead_somewhere() -> None:
    wrong = [
        f"{source_tree.name(path)}: {target}"
        for path in source_tree.files()
        if path.suffix == ".md"
        for target in _LINK.findall(path.read_text())
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert not wrong, "\n".join(wrong)


def test_the_tests_that_documents_name_exist() -> None:
    """Whoever reads a claim may look at what shows it: `tests/unit/x.py`, `test_file` or `test_function`."""
    tests = [path for path in source_tree.files() if source_tree.name(path).startswith("tests/")]
    known = {path.stem for path in tests} | {
        function
        for path in tests
        if path.suffix == ".py"
        for function in _FUNCTION.findall(path.read_text())
    }
    wrong = [
        f"{source_tree.name(path)}: {name}"
        for path in source_tree.files()
        if path.suffix == ".md"
        for name in _TEST.findall(path.read_text())
        if not (_exists(name) if name.startswith("tests/") else name.removesuffix(".py") in known)
    ]
    assert not wrong, "\n".join(wrong)


def _exists(path: str) -> bool:
    return (source_tree.ROOT / path).exists()


def test_the_readme_names_every_top_level_folder() -> None:
    readme = (source_tree.ROOT / "README.md").read_text()
    folders = {source_tree.name(path).split("/")[0] for path in source_tree.files()}
    folders = {name for name in folders if (source_tree.ROOT / name).is_dir()}
    missing = {name for name in folders if f"{name}/" not in readme}
    assert not missing, f"the README's map misses {sorted(missing)}"


def test_decisions_are_numbered_in_order_and_say_why() -> None:
    text = (source_tree.ROOT / "docs/decisions.md").read_text()
    text = text.split("\n## ", 1)[1]  # behind the description of the format
    entries = re.split(r"^## ", text, flags=re.M)
    numbers = [int(entry.split(".", 1)[0]) for entry in entries]
    assert numbers[0] == 1
    assert all(after == before + 1 for before, after in pairwise(numbers)), numbers
    for entry in entries:
        assert re.search(r"^Decision: ", entry, re.M), entry.splitlines()[0]
        assert re.search(r"^Reason: ", entry, re.M), entry.splitlines()[0]
