"""What threads decode goes through sealrun_protocol/decoding.py, where it says why: a type that two threads
meet at once for the first time ends the process."""

import ast

from house import source_tree

ROOMS = (
    source_tree.PACKAGES["sealrun_agent"],
    source_tree.PACKAGES["sealrun_protocol"],
    source_tree.PACKAGES["sealrun_runtime"] / "cache",
)
THE_PLACE = "guest-agent/sealrun_protocol/decoding.py"
FORBIDDEN = {"msgspec.json.decode", "msgspec.msgpack.decode", "msgspec.convert"}


def test_no_type_is_decoded_around_the_lock() -> None:
    """Decoders that a module makes when it is imported are right: its import has a lock."""
    wrong = [
        f"{source_tree.name(path)}:{node.lineno}"
        for room in ROOMS
        for path in sorted(room.rglob("*.py"))
        if source_tree.name(path) != THE_PLACE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN
    ]
    assert not wrong, "\n".join(wrong)
