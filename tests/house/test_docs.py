"""Documents name only what exists, and decisions keep their numbers."""

import re
from itertools import pairwise

from house import source_tree

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
