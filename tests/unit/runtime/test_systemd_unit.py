"""Names of scopes and slices, as runc and crun make them of `linux.cgroupsPath`."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as some
from sealrun_runtime.systemd import unit


@pytest.mark.parametrize(
    ("path", "slice_name", "scope", "group"),
    [
        ("machine.slice:libpod:1f", "machine.slice", "libpod-1f.scope", "/machine.slice"),
        ("system.slice::c1", "system.slice", "-c1.scope", "/system.slice"),
        (":crio:c1", "user.slice", "crio-c1.scope", "/user.slice"),
        ("-.slice:crio:c1", "-.slice", "crio-c1.scope", ""),
        ("-:crio:c1", "-.slice", "crio-c1.scope", ""),
        (
            "kubepods-besteffort-pod1.slice:crio:c1",
            "kubepods-besteffort-pod1.slice",
            "crio-c1.scope",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice",
        ),
        ("a.slice:p:a..b", "a.slice", "p-a..b.scope", "/a.slice"),
        ("a.slice:-p:-b", "a.slice", "-p--b.scope", "/a.slice"),
    ],
)
def test_a_path_names_a_scope(path: str, slice_name: str, scope: str, group: str) -> None:
    found = unit.parse(path, "user.slice")
    assert found == unit.Unit(slice_name, scope)
    assert found.path == f"{group}/{scope}"


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/a/b", "a:b", "a:b:c:d", "a.slice/b.slice:c:d", "../a.slice:b:c", "a.slice:b:../c",
        "a:b:c", "a--b.slice:x:y", "-a.slice:x:y", "a-.slice:x:y", ".slice:x:y", "..:x:y", "a.scope:x:y",
        "a.slice:x:y z", "a.slice:x:y\n", "a.slice:x:\0", "a.slice:ä:y", "a.slice:x:b.slice", "a.slice:x:",
        "a.slice:$(x):y", "a.slice:x:" + "y" * 250, "a" * 250 + ".slice:x:y", "a.slice:x@:y",
    ],
)  # fmt: skip
def test_what_systemd_could_not_have(path: str) -> None:
    with pytest.raises(ValueError, match=r"is not of the form|no slice|no unit|cannot be|names no"):
        unit.parse(path, "system.slice")


@given(some.text(max_size=40))
def test_what_is_parsed_stays_below_its_slice(text: str) -> None:
    try:
        found = unit.parse(text, "system.slice")
    except ValueError:
        return
    parts = found.path.split("/")
    assert parts[0] == ""
    assert not {"", ".", ".."} & set(parts[1:])
    assert parts[-1].endswith(".scope")
    assert all(part.endswith(".slice") for part in parts[1:-1])


def test_a_name_is_escaped_as_systemd_escapes_it() -> None:
    name = "pod-a+b:ä/x\\ y"
    expected = subprocess.run(
        ["systemd-escape", "--", name], capture_output=True, text=True, check=True
    )
    # Dashes stay: they mean nothing in a scope's name, and engines have them there, too.
    assert unit.escape(name).replace("-", r"\x2d") == expected.stdout.strip().replace("-", r"\x2f")
