"""Imports run one way, and an import line never crosses the trust boundary."""

import ast

import pytest
from house import source_tree

ALLOWED = {
    "sealrun_protocol": set(),
    "sealrun_agent": {"sealrun_protocol"},
    "sealrun_vmm": {"sealrun_protocol"},
    "sealrun_runtime": {"sealrun_protocol", "sealrun_vmm"},
    "sealrun_broker": {"sealrun_protocol"},
}

# Rooms of one package that do not know each other; somebody above knits them together.
STRANGERS = [
    {
        "sealrun_agent.image",
        "sealrun_agent.attestation",
        "sealrun_agent.container",
        "sealrun_agent.network",
    },
    {"sealrun_vmm.qemu", "sealrun_vmm.cloud_hypervisor"},
    {"sealrun_runtime.commands", "sealrun_runtime.shim"},
]


def _within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def test_packages_import_only_what_lies_below_them() -> None:
    wrong = [
        f"{source_tree.name(path)}:{line} imports {imported}"
        for package, root in source_tree.PACKAGES.items()
        for path in sorted(root.rglob("*.py"))
        for imported, line in source_tree.imports(path)
        if imported.split(".")[0].startswith("sealrun_")
        and imported.split(".")[0] not in ALLOWED[package] | {package}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("rooms", STRANGERS, ids=lambda rooms: "-".join(sorted(rooms)))
def test_rooms_that_do_not_know_each_other(rooms: set[str]) -> None:
    wrong = [
        f"{source_tree.name(path)}:{line} imports {imported}"
        for path in source_tree.product_modules()
        for home in rooms
        if _within(source_tree.module_name(path), home)
        for imported, line in source_tree.imports(path)
        if any(_within(imported, room) for room in rooms - {home})
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_relatively() -> None:
    wrong = [
        f"{source_tree.name(path)}:{node.lineno}"
        for path in source_tree.python_files()
        for node in ast.walk(source_tree.parse(path))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert not wrong, f"an import line tells the side only in full: {wrong}"


def test_an_init_file_holds_a_docstring_only() -> None:
    wrong = [
        source_tree.name(path)
        for path in source_tree.product_modules()
        if path.name == "__init__.py"
        and (
            len(source_tree.parse(path).body) != 1 or not ast.get_docstring(source_tree.parse(path))
        )
    ]
    assert not wrong, f"importing a package must import nothing else: {wrong}"


def test_the_rules_name_rooms_that_exist() -> None:
    rooms = {source_tree.module_name(path) for path in source_tree.product_modules()}
    assert set(source_tree.PACKAGES) <= rooms
    named = {room for rooms in STRANGERS for room in rooms}
    assert named <= rooms
