"""Files and functions stay small enough to be read in one go."""

import ast

from house import source_tree

FILE_LINES = 500
FUNCTION_LINES = 50


def test_no_program_file_is_longer_than_the_ceiling() -> None:
    programs = {*source_tree.python_files(), *source_tree.shell_files()}
    wrong = [
        f"{source_tree.name(path)}: {lines} lines"
        for path in sorted(programs)
        if (lines := path.read_bytes().count(b"\n")) > FILE_LINES
    ]
    assert not wrong, f"split by job what has more than {FILE_LINES} lines: {wrong}"


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of code: the docstring tells the promise and does not count."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def test_no_function_is_longer_than_the_ceiling() -> None:
    wrong = [
        f"{source_tree.name(path)}:{node.lineno} {node.name}: {_length(node)} lines"
        for path in source_tree.python_files()
        for node in ast.walk(source_tree.parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and _length(node) > FUNCTION_LINES
    ]
    assert not wrong, "\n".join(wrong)
